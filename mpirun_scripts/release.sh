#!/usr/bin/env bash
# Build what is released, check it, and say how to upload it; uploads nothing.
#
# Into dist/: the source distribution, the wheel, SHA256SUMS, and an SBOM (CycloneDX) of the packages that a fresh
# installation of the wheel has.
#
# SFB_PYTHON         the Python ≥ 3.10 to build with (default: the first one found)
# SFB_RELEASE_DIRTY  set it to build from a tree with changes that are not committed
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
cd "$root"

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' sfb/_version.py)
[ -n "$version" ] || fail "sfb/_version.py has no version"
if [ -n "$(git status --porcelain)" ] && [ -z "${SFB_RELEASE_DIRTY:-}" ]; then
    fail "there are changes that are not committed; commit them, or set SFB_RELEASE_DIRTY=1"
fi
grep -q "^## $version" CHANGELOG.md || fail "CHANGELOG.md has no section for $version"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(find_python) || exit 1
echo "== tools ($("$python" --version))"
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install -qq --disable-pip-version-check "build>=1.2" "twine>=6" "cyclonedx-bom>=5"

echo "== building sfb-mpi $version"
rm -rf dist
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) "$work/tools/bin/python" -m build --outdir dist . >"$work/build.log" 2>&1 ||
    { cat "$work/build.log"; fail "the build failed"; }
wheel=$(echo dist/*.whl) sdist=$(echo dist/*.tar.gz)

echo "== checking"
"$work/tools/bin/twine" check --strict "$wheel" "$sdist"
# Every module in git is in both, and nothing in the wheel is from elsewhere.
git ls-files 'sfb/*.py' 'kernels/*.py' 'sfb/py.typed' | sed 's|^kernels/|sfb/kernels/|' | LC_ALL=C sort >"$work/expected"
"$python" - "$wheel" >"$work/wheel" <<'PYTHON'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
print("\n".join(sorted(name for name in names if ".dist-info/" not in name)))
PYTHON
diff "$work/expected" <(LC_ALL=C sort "$work/wheel") || fail "the wheel holds other files than git"
tar -tzf "$sdist" | grep '/kernels/fused.py$' >/dev/null || fail "the source distribution lacks the kernels"

echo "== installing the wheel"
"$python" -m venv "$work/fresh"
"$work/fresh/bin/python" -m pip install -qq --disable-pip-version-check "$wheel" || fail "pip cannot install the wheel"
cd "$work" # not the sources
[ "$("$work/fresh/bin/sfb" --version)" = "sfb, version $version" ] || fail "sfb --version does not say $version"
"$work/fresh/bin/sfb" explain -K 100 -D 100 -S 3 >/dev/null || fail "sfb explain fails without MPI"
cd "$root"

echo "== SBOM"
"$work/tools/bin/cyclonedx-py" environment "$work/fresh/bin/python" --output-reproducible --of JSON \
    -o "dist/sfb_mpi-$version.cdx.json"
(cd dist && sha256sum -- * >SHA256SUMS)
echo "   $("$python" -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["components"]))' "dist/sfb_mpi-$version.cdx.json") packages"

cat <<EOF
== built
$(cat dist/SHA256SUMS)
To release them:
   git tag -s v$version && git push origin v$version
   $(command -v twine || echo twine) upload $wheel $sdist
Attach dist/sfb_mpi-$version.cdx.json and dist/SHA256SUMS to the release of v$version.
EOF
