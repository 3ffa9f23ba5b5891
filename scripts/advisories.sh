#!/usr/bin/env bash
# Checks the dependencies for security advisories and yanked versions.
#
# Yanked versions, which most dangerous versions are, are looked up in the index of crates.io. Advisories of
# https://rustsec.org are checked with cargo-audit, if it is installed and can fetch its database. If a source cannot be
# reached, the check is skipped with a message.
#
# Usage: scripts/advisories.sh
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo-audit >/dev/null; then
    echo "advisories: NOT CHECKED, cargo-audit is not installed; checking for yanked versions only"
elif ! timeout 120 git ls-remote -q https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
    echo "advisories: NOT CHECKED, the advisory database cannot be reached" >&2
else
    cargo audit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Name and version of every crate from crates.io.
awk -F'"' '/^name = /{name=$2} /^version = /{version=$2} /^source = "registry/{print name, version}' Cargo.lock >"$work/crates"
cut -d' ' -f1 "$work/crates" | sort -u | awk -v work="$work" '{
    name = tolower($1); n = length(name)
    path = n < 3 ? n "/" name : n == 3 ? "3/" substr(name, 1, 1) "/" name : substr(name, 1, 2) "/" substr(name, 3, 2) "/" name
    printf "url = \"https://index.crates.io/%s\"\noutput = \"%s/of-%s\"\n", path, work, $1
}' >"$work/urls"
if ! curl -sS --no-progress-meter --fail --parallel --retry 2 --max-time 120 --config "$work/urls" 2>"$work/error"; then
    echo "yanked versions: NOT CHECKED, the index of crates.io cannot be reached: $(grep -m1 curl "$work/error")" >&2
    exit 0
fi
while read -r name version; do
    # Index servers differ in whitespace.
    entry=$(tr -d ' ' <"$work/of-$name" | grep -F "\"vers\":\"$version\"" || true)
    case $entry in
        *'"yanked":true'*) echo "$name $version was yanked" ;;
        '') echo "$name $version is not in the index" ;;
    esac
done <"$work/crates" >"$work/found"
if [ -s "$work/found" ]; then
    echo "yanked versions: \`cargo update -p NAME\` replaces them:" >&2
    cat "$work/found" >&2
    exit 1
fi
echo "yanked versions: none among $(wc -l <"$work/crates") crates"
