"""Why a listing, image, product or pair was dropped, or a question has no answer: a phrase for each counted reason.

>>> in_words({"image_truncated": 20, "status_503": 1})
'the image file is cut off (20), the server answered with status 503 (1)'
"""

from __future__ import annotations

from collections.abc import Mapping

REASONS = {
    # listings
    "line_too_long": "the line is longer than prepare.max_line_bytes",
    "broken_json": "the JSON does not parse",
    "invalid_utf8": "the line is not UTF-8",
    "not_an_object": "the JSON is not an object",
    "no_item_id": "no item id",
    "bad_item_id": "the item id is malformed",
    "no_main_image_id": "no main image",
    "no_keywords_field": "no keywords",
    "malformed_keywords": "the keywords are not a list of values with a language",
    "empty_keywords": "the keywords are empty",
    "no_english_keywords": "keywords in other languages only",
    "image_not_in_images_csv": "the main image is not in the index of images",
    "same_item_second_marketplace": "the same item listed again in another marketplace",
    "second_item_same_main_image": "another item with the same main image was kept",
    "over_max_per_product_type": "beyond prepare.max_per_product_type",
    "over_max_items": "beyond prepare.max_items",
    "duplicate_item": "the item stands in the CSV again",
    # images
    "path_outside_root": "the image's path leads out of the image folder",
    "image_unreadable": "the image file cannot be read",
    "image_not_a_file": "the image's path is no file",
    "image_empty_file": "the image file is empty",
    "image_file_too_large": "the image file is larger than validate.max_file_bytes",
    "image_file_missing": "the image file is missing",
    "image_too_many_pixels": "the image has more pixels than validate.max_pixels",
    "image_too_many_scans": "the JPEG has too many scans",
    "image_too_small": "the image is smaller than validate.min_side",
    "image_animated": "the image is animated",
    "image_mode_unsupported": "the image's color mode is not supported",
    "image_not_an_image": "the file is not an image",
    "image_truncated": "the image file is cut off",
    "image_broken": "the image does not decode",
    "image_ambiguous": "two image files could be meant",
    # requests to the generator
    "blocked": "the generator blocked the request or its reply",
    "image_refused": "the generator refused the image",
    "timeout": "no reply in time",
    "connection": "the connection broke",
    "not_json": "the server's reply was not of its API",
    # replies
    "no_opinion": "the reply answers none of the questions",
    "empty": "the reply is empty",
    "cut_off": "the reply was cut off at max_output_tokens",
    "eaten_by_thoughts": "thinking used up max_output_tokens",
    "no_valid_pair": "no pair of the reply met the rules",
    "too_long": "the reply is too long",
    "no_array": "the reply has no list of pairs",
    "no_reply": "no reply for the product",
    "unparsable_reply": "the reply has no readable list of pairs",
    "image_changed": "the image has changed since",
    "not_validated": "the image was not validated",
    "no_pair_left": "none of the product's pairs met the rules",
    "same_image": "another product shows the same image",
    "near_test_image": "the image is nearly equal to one of the test split",
    "near_val_image": "the image is nearly equal to one of the validation split",
    # pairs
    "surplus": "beyond the five pairs of a reply",
    "no_question": "the question is missing or asks nothing",
    "not_one_word": "the answer is not one English word",
    "placeholder_answer": "the answer says that there is none or that it cannot be told",
    "no_category": "the category is none of easy, medium and hard",
    "answer_in_question": "the question gives the answer away",
    "duplicate_question": "the same question about the same product",
    "near_duplicate_question": "nearly the same question about the same product",
}
_PREFIXES = {
    "status_": "the server answered with status ",
    "finished_": "the generator stopped its reply without text: ",
}


def phrase(reason: str) -> str:
    """A reason in words; an unknown one with blanks for its underscores."""
    for prefix, words in _PREFIXES.items():
        if reason.startswith(prefix):
            return words + reason.removeprefix(prefix).replace("_", " ")
    return REASONS.get(reason, reason.replace("_", " "))


def in_words(counts: Mapping[str, int]) -> str:
    """Counted reasons as one list, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{phrase(reason)} ({count:,})" for reason, count in ordered)
