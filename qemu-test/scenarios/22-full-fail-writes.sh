# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# timeout: 120
# cost: 17
# A region too small, `on_error fail-writes`: writes that need room fail with ENOSPC, whole, and change nothing; those
# that need none go on; the image stays. When the snapshot is deleted, all go on. The oracle is a file that gets
# every write that succeeded.
. /presnap/lib.sh
load
dmsetup create o --table "0 65536 linear $(serial_disk origin) 0"
dmsetup create r --table "0 17280 linear $(serial_disk region) 0" # 2000 slots
O=/dev/mapper/o R=/dev/mapper/r
dd if=/dev/urandom of=/tmp/noise bs=1M count=32 status=none
cp /tmp/noise /tmp/want
dd if=/tmp/want of=$O bs=1M oflag=direct status=none
presnap format --origin $O $R --force >/dev/null 2>&1
dmsetup create p --table "0 65536 presnap $O $R 4 scope image on_error fail-writes"
S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
echo off >"$S/predictor"
echo 86400000 >"$S/intent_clean_ms" # no slot for what is dirty and not written any more
head -c 1048576 /dev/urandom >/tmp/new

# put UNIT: 64 KiB of new data; sets `said` if it fails
put() {
	said=$(dd if=/tmp/new of=/dev/mapper/p bs=64k count=1 skip=$(($1 % 16)) seek="$1" oflag=direct conv=notrunc status=none 2>&1) || return 1
	dd if=/tmp/new of=/tmp/want bs=64k count=1 skip=$(($1 % 16)) seek="$1" conv=notrunc status=none
}
same() { # same WHAT
	dd if=$O of=/tmp/is bs=1M iflag=direct status=none
	cmp /tmp/is /tmp/want || die "$1: the origin is not what was written"
	dd if=/dev/mapper/p of=/tmp/is bs=1M iflag=direct status=none
	cmp /tmp/is /tmp/want || die "$1: the device does not read as the origin"
}
events() { dmsetup info -c --noheadings -o events p | tr -d ' '; }
snap() {
	id=$(dmsetup message p 0 snapshot "$@")
	wait_for 30 sh -c "dmsetup message p 0 state $id | grep -q 'sealed\|dropped'"
}

snap
dmsetup create v --readonly --table "0 65536 presnap-image /dev/mapper/p 1"
cp /tmp/want /tmp/at
before=$(events)
log_mark
# 2000 slots hold 125 units.
good=0
while put $good; do good=$((good + 1)); done
[ $good -ge 120 ] && [ $good -le 125 ] || die "$good writes succeeded, not about 125"
case $said in *'No space left on device'*) ;; *) die "the first write without room: $said" ;; esac
log_since | grep -q 'presnap.*the region is full; writes that .* fail' || die "the log does not say why: $(log_since)"
[ "$(events)" -gt "$before" ] || die "no event"
dmsetup status p | grep -q ' 1 1 - rw .*overflow$' || die "status: $(dmsetup status p)"
for unit in 200 300 511; do
	if put $unit; then die "unit $unit was written without room"; fi
	case $said in *'No space left on device'*) ;; *) die "unit $unit: $said" ;; esac
done
expect_fail -m 'No space left' blkdiscard -o $((400 * 65536)) -l 65536 /dev/mapper/p
expect_fail -m 'No space left' blkdiscard -z -o $((400 * 65536)) -l 65536 /dev/mapper/p
[ "$(log_since | grep -c 'region is full')" -le 1 ] || die "the log repeats itself: $(log_since)"
same "writes that fail"
for unit in 0 1 60 119 5; do put $unit || die "unit $unit is preserved already, but: $said"; done
same "writes that need no room"
cmp /dev/mapper/v /tmp/at || die "the image"
eq "$(dmsetup status v | cut -d' ' -f4)" ro "status of the image"
ok "full: ENOSPC where room is needed, the image stays"

# Many at a time: each ends, well or with ENOSPC; nothing hangs.
timeout 60 fio --name=w --filename=/dev/mapper/p --rw=randwrite --bs=4k --size=32M --io_size=8M --direct=1 --ioengine=libaio --iodepth=32 \
	--continue_on_error=write --error_dump=1 --ignore_error=,ENOSPC >/tmp/fio.log 2>&1 || { cat /tmp/fio.log; die "fio"; }
cmp /dev/mapper/v /tmp/at || die "the image after a flood"
dd if=$O of=/tmp/want bs=1M iflag=direct status=none
ok "a flood of writes"

# The next snapshot does not fit: it goes, the image stays, and nobody waits for ever.
for unit in $(seq 0 9); do put "$unit" || die "unit $unit: $said"; done
snap
dmsetup message p 0 state "$id" | grep -qx "$id dropped:overflow" || die "$(dmsetup message p 0 state "$id")"
eq "$(dmsetup status v | cut -d' ' -f4)" ro "status of the image after a dropped snapshot"
cmp /dev/mapper/v /tmp/at || die "the image after a dropped snapshot"
for unit in 0 1 2; do put $unit || die "unit $unit after a dropped snapshot: $said"; done
same "a dropped snapshot"
ok "a snapshot that does not fit"

dmsetup remove v
log_mark
dmsetup message p 0 delete 1
# The first write may still find the region as it was: it waits for the slots, and does not fail.
for unit in 500 200 300 511; do put $unit || die "unit $unit after the deletion: $said"; done
wait_for 10 sh -c "[ \$(cat $S/used_slots) = 0 ]"
dmsetup status p | grep -q ' 0 0 - rw [^o]*$' || die "status after the deletion: $(dmsetup status p)"
blkdiscard -z -o $((400 * 65536)) -l 65536 /dev/mapper/p
dd if=/dev/zero of=/tmp/want bs=64k count=1 seek=400 conv=notrunc status=none
same "after the deletion"
! log_since | grep 'presnap.*full' || die "the log still says that it is full"
dmsetup remove p
presnap check --data $R >/dev/null 2>&1
ok "writes go on when there is room"
