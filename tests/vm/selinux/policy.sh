#!/bin/sh
# policy.sh ROOT: called by rootfs.sh. Builds two modules of the policy into ROOT: the one for
# containers, which Debian's package leaves out and its source has, and criw.te. Then labels
# the files of ROOT: the kernel of this machine need not know SELinux for that.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$1
build=$root/var/tmp/build
contexts=/etc/selinux/default/contexts/files/file_contexts

mkdir -p "$build/module"
# Headers and source are unpacked, not installed: they depend on a lot.
chroot "$root" sh -c 'cd /var/tmp/build && apt-get download selinux-policy-dev selinux-policy-src' >&2
for package in "$build"/*.deb; do
    dpkg-deb -x "$package" "$build"
done
tar -xf "$build"/usr/src/selinux-policy-src.tar.* -C "$build"
services=$build/selinux-policy-src/policy/modules/services
cp "$services/container.te" "$services/container.fc" "$here/criw.te" "$here/criw.fc" "$build/module/"
chroot "$root" sh -c 'cd /var/tmp/build/module &&
    make -f ../usr/share/selinux/devel/include/Makefile HEADERDIR=/var/tmp/build/usr/share/selinux/devel/include \
        SHAREDIR=/var/tmp/build NAME=default TYPE=mcs container.pp criw.pp &&
    semodule -n -s default -i container.pp -i criw.pp' >&2
rm -r "$build"

# The kernel's argument enforcing= has the last word.
printf 'SELINUX=permissive\nSELINUXTYPE=default\n' >"$root/etc/selinux/config"

# Mounted before there is a policy, the files of the payload have no labels.
unit=$root/etc/systemd/system/vm-job.service.d
mkdir -p "$unit"
cat >"$unit/payload.conf" <<'END'
[Service]
ExecStartPre=umount /payload
ExecStartPre=mount -t ext4 -o ro,defcontext=system_u:object_r:bin_t:s0 /dev/vdb /payload
END

# Else systemd makes it, before there is a policy.
: >"$root/etc/machine-id"

chroot "$root" setfiles -F "$contexts" /
