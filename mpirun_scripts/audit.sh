#!/usr/bin/env bash
# Look for known faults of the packages in an environment: audit.sh ENVIRONMENT [OPTIONS OF pip-audit]
#
# Exits with 1 if some are found. A service of advisories that cannot be reached is no fault: that is said, with exit 0.
set -euo pipefail
bin=${1:?usage: audit.sh ENVIRONMENT}/bin
shift
found=$(mktemp)
trap 'rm -f "$found"' EXIT

code=0
said=$(timeout 300 "$bin/pip-audit" --skip-editable --progress-spinner off --timeout 15 \
    --format json --output "$found" "$@" 2>&1) || code=$?
if [ -s "$found" ]; then # it has asked about every package
    "$bin/python" - "$found" <<'PYTHON'
import json
import sys

with open(sys.argv[1]) as file:
    packages = json.load(file)["dependencies"]
faulty = [(package, fault) for package in packages for fault in package.get("vulns", ())]
asked = sum("vulns" in package for package in packages)
if packages and not asked:  # a mirror of the index, without advisories, says of each that it is not found
    print(f"pip-audit: skipped, the service knows none of {len(packages)} packages")
    sys.exit()
print(f"pip-audit: {asked} packages, {len(faulty)} known faults")
for package, fault in faulty:
    mended = ", ".join(fault["fix_versions"]) or "no release yet"
    print(f"  {package['name']} {package['version']}: {fault['id']} {' '.join(fault['aliases'])}; mended in {mended}")
sys.exit(bool(faulty))
PYTHON
elif grep -qiE 'connect|timed? ?out|resolve|unreachable|refused|proxy|[45][0-9][0-9] .*(error|found|forbidden)' <<<"$said" || [ $code = 124 ]; then
    echo "pip-audit: skipped, no service of advisories: $(tail -n 1 <<<"$said")"
else
    echo "$said"
    echo "pip-audit: failed with exit code $code"
    exit 1
fi
