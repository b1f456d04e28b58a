# SPDX-License-Identifier: GPL-2.0-only
# null-blk: 4M 5M 128M
# timeout: 1200
# cost: 350
# A thousand hostile regions and a thousand hostile models (presnap-hostile makes them of good ones): none crashes the
# kernel or hangs it; what is refused is refused with words; what is accepted is as good as any other, snapshots and all,
# and the origin never holds anything but what was written to it. Arguments: what to do (all), options of presnap-hostile.
. /presnap/lib.sh
load
what=(regions blobs crowd)
case ${1:-} in
regions | blobs | crowd)
	what=("$1")
	shift
	;;
esac
for w in "${what[@]}"; do
	region=$DISK1
	[ "$w" != crowd ] || region=$DISK2
	presnap-hostile "$w" --origin "$DISK0" --region "$region" "$@" || die "hostile $w"
	ok "$w"
done
! dmesg | grep -q 'rust_kernel: panicked\|BUG:\|Oops' || die "the kernel has complained"
rmmod dm_presnap
