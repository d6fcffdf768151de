#!/bin/bash
# build.sh STAGE OUTPUT: makes a Debian package of a tree that `make install PREFIX=/usr
# DESTDIR=STAGE` has filled. Needs dpkg-deb only, so it works on any Debian machine.
set -euo pipefail

stage=${1:?the filled tree} output=${2:?the directory for the .deb}
here=$(cd "$(dirname "$0")" && pwd)
version=$("$stage/usr/bin/criw" --version)
version=${version#criw }
architecture=$(dpkg --print-architecture)

# The newest glibc symbol that the dynamic programs use is the oldest glibc they run on.
glibc=$(for program in "$stage/usr/bin/criw" "$stage"/usr/libexec/criw/*; do
    objdump -T "$program" 2>/dev/null || true
done | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
[ -n "$glibc" ] || { echo "build.sh: no glibc symbol found in $stage: objdump failed?" >&2; exit 1; }

mkdir -p "$stage/DEBIAN" "$stage/etc/criw/config.d"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@GLIBC@/${glibc#GLIBC_}/" \
    -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$stage" | cut -f1)/" \
    "$here/control.in" >"$stage/DEBIAN/control"
for script in postinst prerm postrm; do
    install -m 755 "$here/$script" "$stage/DEBIAN/$script"
done
install -D -m 644 "$here/copyright" "$stage/usr/share/doc/criw/copyright"

mkdir -p "$output"
# The oldest compression that every dpkg in use can read; root owns all files.
dpkg-deb --root-owner-group -Zxz --build "$stage" "$output/criw_${version}_${architecture}.deb"
