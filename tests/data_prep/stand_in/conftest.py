"""The shop of the generation tests."""

from tests.data_prep.generate.conftest import key, shop  # noqa: F401 - fixtures
