# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 128M:origin 128M:region 128M:replica
# modprobe: ext4
# file: README.md:/presnap/README.md
# timeout: 240
# cost: 18
# The walk of README.md: its commands, as they stand there, do what it says. So does the installation of the module.
. /presnap/lib.sh

# Installed as README.md says, the module is loaded when the first device is made.
[ ! -d /sys/module/dm_presnap ] || rmmod dm_presnap
mkdir -p "/lib/modules/$(uname -r)/updates"
cp /presnap/dm-presnap.ko "/lib/modules/$(uname -r)/updates/"
depmod -a

# The code blocks between the two marks, but not the one that names the disks.
awk '/^<!-- walk begins/ {on = 1} /^<!-- walk ends/ {on = 0}
	/^```/ {code = !code; next}
	on && code' /presnap/README.md | grep -v '^ORIGIN=' >commands
[ "$(wc -l <commands)" -ge 20 ] || die "README.md has no walk"
ORIGIN=$(serial_disk origin) REGION=$(serial_disk region) REPLICA=$(serial_disk replica)
export ORIGIN REGION REPLICA
# Pasted, one command after the other; any failure ends it.
bash -euxo pipefail commands >said 2>&1 || { cat said; die "the walk fails"; }
cat said
grep -v '^+' said >output
[ "$(grep -c '^the first version$' output)" = 1 ] || die "the image does not show the first version"
[ "$(grep -c '^the second version$' output)" = 1 ] || die "the replica does not show the second version"
grep -q '^1 sealed ' output || die "no statistics of snapshot 1"
[ "$(sed -n 's/^\([0-9]*\) sealed \(image\|delta\) .*/\1/p' output | sort -nu | tail -n 1)" -ge 3 ] || die "the schedule has made no snapshot"
grep -q '^dm-\|presnap  *v' output || die "dmsetup targets does not list it"
! dmsetup info data >/dev/null 2>&1 || die "the device is left"
rmmod dm_presnap
rm "/lib/modules/$(uname -r)/updates/dm-presnap.ko"
depmod -a
ok "the walk of README.md"
