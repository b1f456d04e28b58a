# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# modprobe: dm-flakey
# timeout: 240
# cost: 35
# Errors below, writers under way. Of the region: snapshots are off and say so, no write of the foreground fails, images
# are not read wrong, not even later. Of the origin: a copy that cannot be read drops the snapshot, and the foreground
# sees the origin's own errors and no others.
. /presnap/lib.sh
. /presnap/oracle.sh
load
NVME_O=$(serial_disk origin) NVME_R=$(serial_disk region)
O=/dev/mapper/o R=/dev/mapper/r
# below NAME DEVICE SECTORS FIRST COUNT KIND: these sectors of NAME behave as KIND says, the rest is well
below() {
	local first=$4 count=$5 middle
	case $6 in
	good) middle="linear $2 $first" ;;
	error) middle=error ;;
	*) middle="flakey $2 $first 0 3600 1 $6" ;;
	esac
	{
		[ "$first" = 0 ] || echo "0 $first linear $2 0"
		echo "$first $count $middle"
		[ $((first + count)) = "$3" ] || echo "$((first + count)) $(($3 - first - count)) linear $2 $((first + count))"
	} >/tmp/below
	if [ -e "/dev/mapper/$1" ]; then
		dmsetup reload "$1" /tmp/below
		dmsetup suspend --noflush --nolockfs "$1"
		dmsetup resume "$1"
	else
		dmsetup create "$1" /tmp/below
	fi
}
origin() { below o "$NVME_O" 65536 "$@"; }
region() { below r "$NVME_R" 17280 "$@"; } # 2000 slots from block 160 on, the index in blocks 128 to 159
create() {
	dmsetup create p --table "0 65536 presnap $O $R"
	S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
}
remove() { # in good time, whatever has failed
	local begin
	begin=$(now_ms)
	dmsetup remove p
	[ $(($(now_ms) - begin)) -lt 5000 ] || die "removing took $(($(now_ms) - begin)) ms"
}
origin 0 65536 good
region 0 17280 good
oracle

# fails WHERE FIRST COUNT KIND: the region fails there, while a snapshot is being made and an image is read
fails() {
	local where=$1 base
	shift
	presnap format --origin $O $R --force >/dev/null 2>&1
	create
	put 0 256 7
	snap scope delta
	put 100 256 11
	snap scope image
	cp /tmp/want /tmp/at
	image 2
	writers 4096 512
	wait_for 30 sh -c "[ \$(cat $S/dirty_blocks) -ge 256 ]"
	event_begin
	region "$@"
	id=$(dmsetup message p 0 snapshot 2>/dev/null || echo none)
	wait_for 30 sh -c "dmsetup status p | grep -q Invalid"
	event_end
	said "I/O error on the region; snapshots are off"
	said "the images of 1 snapshots are lost: io-error"
	# What was being made, if anything, has ended, and nothing is begun.
	wait_for 10 sh -c "dmsetup status p | grep -q ' - Invalid '"
	[ "$id" = none ] || eq "$(dmsetup message p 0 state "$id")" "$id dropped:io-error" "$where: the snapshot being made"
	[ "$(cat "$S/stats/io_errors")" -gt 0 ] || die "$where: no error is counted"
	expect_fail -m "the region has failed" dmsetup message p 0 snapshot
	eq "$(dmsetup status v | cut -d' ' -f4)" Invalid "$where: status of the image"
	expect_fail dd if=/dev/mapper/v of=/dev/null bs=64k count=1 skip=256 iflag=direct
	another_round
	stop "$where"
	dmsetup remove v
}
# The region is well again, and opened again: what was sealed is there, and what the images lack is not made up.
again() {
	create
	eq "$(dmsetup message p 0 list | cut -d' ' -f1-4 | tr '\n' ';')" "1 sealed delta 0;2 sealed delta 1;" "$1: list"
	status | grep -q ' rw full-needed$' || die "$1: status: $(status)"
	snap scope image
	state_is "$id" 'sealed .* base=0 ' || die "$1: $(dmsetup message p 0 state "$id")"
	image "$id"
	cp /tmp/want /tmp/at
	put 0 64 900
	cmp /dev/mapper/v /tmp/at || die "$1: image $id"
	dmsetup remove v
	dmsetup remove p
	presnap check --data $R >/tmp/check 2>&1 || { cat /tmp/check; die "$1: check"; }
	ok "$1: opened again"
}

fails "the index cannot be written" 1024 256 error_writes
remove
region 0 17280 good
again "the index cannot be written"

fails "the region cannot be written" 0 17280 error_writes
region 0 17280 good # before the close, which can say then that the image is lost
remove
again "the region cannot be written"

fails "the region is gone" 0 17280 error
remove
region 0 17280 good
expect_fail dmsetup message p 0 list
ok "the region is gone"

# The origin: blocks 1280 to 1535 cannot be read, and can be written.
presnap format --origin $O $R --force >/dev/null 2>&1
create
echo off >"$S/predictor"
snap scope delta
writers 1024 1024
wait_for 30 sh -c "[ \$(cat $S/dirty_blocks) = 1024 ]"
event_begin
origin 10240 2048 error_reads
id=$(dmsetup message p 0 snapshot scope delta freeze_budget 0)
wait_for 30 state_is "$id" dropped:
event_end
state_is "$id" dropped:io-error || die "$(dmsetup message p 0 state "$id")"
said "snapshot $id was dropped: io-error"
another_round
# The device fails where the origin does, and nowhere else.
dd if=/dev/mapper/p of=/dev/null bs=64k count=80 iflag=direct status=none || die "a read that the origin can do"
expect_fail -m "Input/output error" dd if=/dev/mapper/p of=/dev/null bs=64k count=1 skip=80 iflag=direct status=none
status | grep -q ' 1 1 - rw ' || die "status: $(status)"
origin 0 65536 good
stop "the drain cannot read"
# Nothing of the dropped one is lost to the next.
snap scope image
state_is "$id" 'sealed scope=image base=1 .* delta_blocks=1024 ' || die "$(dmsetup message p 0 state "$id")"
cp /tmp/want /tmp/at
image "$id"
put 1024 64 3
cmp /dev/mapper/v /tmp/at || die "the image after a dropped snapshot"

# A guard that cannot read: the write goes through, the image is lost.
origin $((4096 * 8)) 2048 error_reads
event_begin
put 4096 64 77 || die "a write failed because a guard could not read"
event_end
said "the images of 1 snapshots are lost: io-error"
eq "$(dmsetup status v | cut -d' ' -f4)" Invalid "status of the image"
dmsetup remove v
origin 0 65536 good
dd if=$O of=/tmp/is bs=1M iflag=direct status=none
cmp /tmp/is /tmp/want || die "the origin after a guard could not read"
ok "a guard cannot read"

# Errors of the origin's writes belong to the writers alone.
delete 1
delete "$id"
snap scope image
cp /tmp/want /tmp/at
image "$id"
origin $((5120 * 8)) 2048 error_writes
expect_fail -m "Input/output error" dd if=/tmp/noise of=/dev/mapper/p bs=64k count=1 seek=320 oflag=direct conv=notrunc status=none
put 1024 64 99 || die "a write that the origin can do"
eq "$(dmsetup status v | cut -d' ' -f4)" ro "status of the image"
status | grep -q ' rw -$' || die "status: $(status)"
cmp /dev/mapper/v /tmp/at || die "the image after a write failed"
origin 0 65536 good
dmsetup remove v
dd if=$O of=/tmp/is bs=1M iflag=direct status=none
cmp /tmp/is /tmp/want || die "the origin after a write failed"
remove
presnap check --data $R >/dev/null 2>&1
ok "writes that the origin cannot do"
