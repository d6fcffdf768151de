#!/bin/bash
# rootfs.sh DIR [selinux]: makes what a virtual machine boots, from Debian packages:
# DIR/rootfs.ext4, DIR/vmlinuz and DIR/initrd; with a policy of SELinux and labelled files.
#
# The release is that of this machine, because the daemon is linked with its libc, and the
# packages come from where this machine's apt takes them. Done once: a second call with the
# same script and the same release finds the images and returns.
set -euo pipefail

out=${1:?the directory for the images}
kind=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
IMAGE_SIZE=1500M

# A node: init and its bus, runc, CNI plugins and what these call; a registry to pull from.
packages=systemd-sysv,dbus,kmod,runc,containernetworking-plugins,iptables,nftables,iproute2
packages+=,procps,jq,ca-certificates,busybox-static,docker-registry
# Containers have a profile; critest loads its own by sudo.
packages+=,apparmor,sudo
hooks=()
if [ "$kind" = selinux ]; then
    packages+=,selinux-policy-default,policycoreutils,selinux-utils,checkpolicy,semodule-utils,m4,make,gawk
    # At the end it would write some files anew, which then had no labels.
    hooks=(--customize-hook="'$here/selinux/policy.sh' \"\$1\"" --skip=cleanup/reproducible)
fi

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:?this machine is no Debian}")
key=$(cat "$0" "$here/init" "$here/vm-job.service" ${kind:+"$here/selinux/"*} | sha256sum | cut -c1-16)-$codename
[ "$(cat "$out/key" 2>/dev/null)" = "$key" ] && exit 0

rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
    'Origin: Debian' 'Created-By: Packages' 'Component: main' >"$work/sources.list"
[ -s "$work/sources.list" ] || { echo "rootfs.sh: apt knows no Debian archive: run apt-get update" >&2; exit 1; }

# The kernel's package is unpacked, not installed: that would bring and run the tools for an
# initrd for any machine, while this one needs three modules.
cat >"$work/kernel" <<'END'
set -eu
cd "$1/var/tmp"
name=$(chroot "$1" apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
chroot "$1" sh -c "cd /var/tmp && apt-get download $name"
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C "$1" --keep-directory-symlink ./boot ./lib/modules
rm linux-image-*.deb
chroot "$1" depmod "$(ls "$1/lib/modules")"
END

mmdebstrap --quiet --mode=root --variant=apt --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt=force-unsafe-io \
    --customize-hook="sh $work/kernel \"\$1\"" \
    --customize-hook="cp '$here/vm-job.service' \"\$1/etc/systemd/system/\"" \
    --customize-hook='systemctl --root="$1" enable vm-job.service' \
    --customize-hook='systemctl --root="$1" disable docker-registry.service' \
    --customize-hook='systemctl --root="$1" mask systemd-networkd.service systemd-timesyncd.service \
        getty@tty1.service serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer \
        dpkg-db-backup.timer apparmor.service fstrim.timer e2scrub_all.timer e2scrub_reap.service systemd-pstore.service' \
    --customize-hook='echo criw-vm >"$1/etc/hostname"' \
    --customize-hook='mkdir -p "$1/payload"' "${hooks[@]}" \
    "$codename" "$work/root" "$work/sources.list"

kernel=$(ls "$work/root/lib/modules")
mkdir -p "$work/initrd/bin" "$work/initrd/modules" "$work/initrd/"{dev,root}
install -m 755 "$here/init" "$work/initrd/init"
cp "$work/root/bin/busybox" "$work/initrd/bin/busybox"
# Numbered in the order in which they have to be loaded; what is part of the kernel is "builtin".
number=10
for name in virtio_pci virtio_blk ext4; do
    while read -r verb file _; do
        [ "$verb" = insmod ] || continue
        ls "$work/initrd/modules" | grep -q -- "-${file##*/}$" && continue
        cp "$work/root$file" "$work/initrd/modules/$number-${file##*/}"
        number=$((number + 1))
    done < <(chroot "$work/root" modprobe -S "$kernel" --show-depends "$name")
done
(cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$out/initrd"
cp "$work/root/boot/vmlinuz-$kernel" "$out/vmlinuz"
rm -rf "$work/root/boot/"*
mke2fs -q -t ext4 -d "$work/root" -E root_owner=0:0 "$out/rootfs.ext4" "$IMAGE_SIZE" >/dev/null
echo "$key" >"$out/key"
