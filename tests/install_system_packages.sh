#!/usr/bin/env bash
# Installs the Debian packages that some tests need: SLURM for the cluster tests, Chromium for the report. Without them, those
# tests are skipped and say so. Needs root; takes about half a minute.
set -euo pipefail
wanted=(slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core chromium chromium-driver)
missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
# Disable the packages' services, because the tests start their own daemons.
for service in slurmctld slurmd slurmdbd munge; do
  command -v systemctl >/dev/null && systemctl disable --now "$service" 2>/dev/null || true
done
