# SPDX-License-Identifier: GPL-2.0-only
# nvme: 96M:origin 64M:region 100M:replica 96M:other
# file: qemu-test/blobs:/presnap/blobs
# timeout: 300
# cost: 60
# The command `presnap` from format to close against the real kernel: what it says, what it refuses, and that a replica
# holds what the image does, sent in full and as deltas.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region) C=$(serial_disk replica) X=$(serial_disk other)
SIZE=$(blockdev --getsize64 "$O")
write() { # write BYTES SEED
	fio --name=w --filename=/dev/mapper/p --rw=randwrite --bs=4k --size=64M --io_size="$1" --direct=1 --ioengine=libaio --iodepth=16 --randseed="$2" >/tmp/fio.log || { cat /tmp/fio.log; die fio; }
}
says() { # says TEXT COMMAND...: its output contains TEXT
	local text=$1 out
	shift
	out=$("$@")
	[[ $out == *"$text"* ]] || die "'$text' is not in the output of $*: $out"
}
same() { # same ID WHAT: the replica holds image ID
	presnap image p "$1" v >/dev/null
	cmp -n "$SIZE" /dev/mapper/v "$C" || die "$2: the replica differs from image $1"
	presnap image --remove v
	ok "$2"
}

presnap format --origin "$O" "$R" --force
expect_fail -m "belongs to another origin" presnap open p "$X" "$R"
eq "$(presnap open p "$O" "$R" --scope image)" /dev/mapper/p open
expect_fail -m "already" presnap open p "$O" "$R"
expect_fail -m "in use" presnap format --origin "$O" "$R" --force
expect_fail -m "in use" presnap receive "$R" </dev/null
expect_fail -m "of type linear" sh -c "dmsetup create l --table '0 8 linear $X 0'; presnap status l"
dmsetup remove l
for dev in p /dev/mapper/p /dev/dm-0; do says ': rw' presnap status $dev; done
ok "opened"

write 8M 1
eq "$(presnap snapshot p)" 1 "the first snapshot"
presnap send p 1 -o /tmp/full
presnap receive "$C" </tmp/full
same 1 "full"
write 4M 2
blkdiscard -z -o 4M -l 2M /dev/mapper/p
eq "$(presnap snapshot /dev/mapper/p --within 1s --json | grep -c '"state": "sealed"')" 1 "a snapshot with a grace"
presnap send p 2 --base 1 | presnap receive "$C"
same 2 "delta"
write 4M 3
presnap snapshot p --freeze-budget unlimited >/dev/null
write 4M 4
presnap snapshot p --freeze-budget 0 >/dev/null
presnap send p 4 --base 2 | presnap receive "$C"
same 4 "two deltas in one stream"

sha256sum "$C" >/tmp/before
expect_fail -m "holds snapshot 4 already" sh -c "presnap send p 4 --base 3 | presnap receive $C"
expect_fail -m "cut short" sh -c "head -c 100000 /tmp/full | presnap receive $C"
expect_fail -m "too small" sh -c "dmsetup create small --table '0 131072 linear $X 0'; presnap receive /dev/mapper/small </tmp/full"
dmsetup remove small
sha256sum -c --quiet /tmp/before || die "refused, and changed all the same"
mkfs.ext4 -q "$X"
expect_fail -m "ext2/3/4" sh -c "presnap receive $X </tmp/full"
mount "$X" /mnt
expect_fail -m "mounted or otherwise in use" sh -c "presnap receive $X --force </tmp/full"
umount /mnt
printf X | dd of="$C" bs=1 seek=1080 conv=notrunc,fsync status=none
write 1M 5
presnap snapshot p >/dev/null
expect_fail -m "was changed since snapshot 4" sh -c "presnap send p 5 --base 4 | presnap receive $C"
ok "refusals"

expect_fail -m "only the oldest" presnap rm p 2
presnap rm p 3 1 2
eq "$(presnap list p --json | grep -c '"id"')" 2 "snapshots left"
says '"checksum"' presnap show p 4 --json
presnap set p predictor off
eq "$(presnap get p predictor)" off predictor
expect_fail -m "tick_ms" presnap set p tick_ms 1
expect_fail -m "no setting" presnap set p tack_ms 1
says hits presnap stats p

presnap trace record p -o /tmp/trace --seconds 1
presnap trace info /tmp/trace
presnap trace replay /tmp/trace /dev/mapper/p --force --speed max --no-reads
presnap trace record p -o /tmp/trace2 --seconds 1 --new-only
ok "traces"

for blob in /presnap/blobs/*.psm; do
	case $blob in
	*/bad-*) expect_fail -m "$(basename "$blob")" presnap model push p "$blob" ;;
	*)
		presnap model push p "$blob"
		presnap model verify p "$blob"
		;;
	esac
done
ok "models"

presnap close p
expect_fail -m "not a running" presnap snapshot "$R"
presnap check --data "$R"
presnap list "$R"
