# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# timeout: 240
# cost: 40
# A snapshot of scope image reads as the origin did at T0, whatever is written after it; the region's content is
# checked offline against its own checksums. Once with nothing written, once while writers run.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
presnap format --origin "$O" "$R" --force
dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
sum() { dd if="$1" bs=1M iflag=direct status=none | sha256sum; }
fill() { fio --name=w --filename=/dev/mapper/p --rw=randwrite --bs="$1" --size=64M --io_size="$2" --direct=1 --ioengine=libaio --iodepth=16 --randseed="$3" >/tmp/fio.log || { cat /tmp/fio.log; die fio; }; }
seal() { # seal [ARG...]: takes a snapshot, waits for the seal
	id=$(dmsetup message p 0 snapshot "$@")
	wait_for 60 sh -c "dmsetup message p 0 state $id | grep -q 'sealed\|dropped'"
	dmsetup message p 0 state "$id"
}
fill 16k 16M 1
sum "$O" >/tmp/before
seal scope image
dmsetup status p
fill 4k 6M 2
dmsetup create v --readonly --table "0 $(sectors "$O") presnap-image /dev/mapper/p 1"
sum /dev/mapper/v >/tmp/image
cmp /tmp/before /tmp/image && ok "image 1 is the origin at T0, after 6 MiB of overwrites"
sum "$O" >/tmp/now
cmp -s /tmp/before /tmp/now && die "the origin has not changed: the test tests nothing"
expect_fail -m "held" dmsetup message p 0 delete 1
seal scope image
fill 4k 6M 3
sum /dev/mapper/v >/tmp/image
cmp /tmp/before /tmp/image && ok "image 1 through the chain of two"
dmsetup create v2 --readonly --table "0 $(sectors "$O") presnap-image /dev/mapper/p 2"
sum /dev/mapper/v2 >/tmp/image
cmp /tmp/now /tmp/image && ok "image 2"
dmsetup remove v
dmsetup message p 0 delete 1
wait_for 10 sh -c "! dmsetup message p 0 list | grep -q '^1 '"
sum /dev/mapper/v2 >/tmp/image
cmp /tmp/now /tmp/image && ok "image 2 after 1 is gone"
dmsetup remove v2
dmsetup message p 0 list
grep . /sys/block/dm-0/presnap/stats/*
dmsetup remove p
presnap check --data "$R" | tee /tmp/check
! grep -q "belong to no snapshot" /tmp/check || die "the close has left slots that belong to nobody"
dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
dmsetup status p
dmsetup create v2 --readonly --table "0 $(sectors "$O") presnap-image /dev/mapper/p 2"
sum /dev/mapper/v2 >/tmp/image
cmp /tmp/now /tmp/image && ok "image 2 after the device was closed and opened"
fill 4k 3M 4
sum /dev/mapper/v2 >/tmp/image
cmp /tmp/now /tmp/image && ok "image 2 after more overwrites"
dmsetup remove v2
seal scope delta
for id in 2 3; do
	dmsetup message p 0 delete $id
	wait_for 10 sh -c "! dmsetup message p 0 list | grep -q '^$id '"
done
fill 4k 1M 5
seal scope delta | tee /tmp/seal
grep -q "^4 sealed .* base=3 " /tmp/seal && ok "a deleted snapshot is still the base of the next"
dmsetup remove p
