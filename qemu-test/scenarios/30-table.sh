# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# timeout: 300
# cost: 18
# Table lines: every bad one is refused with words that name what is wrong, every good one loads again as it is shown.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region) O2=$(serial_disk origin2) R2=$(serial_disk region2)
N=$(sectors "$O")
ID=00112233445566778899aabbccddeeff
presnap format --origin "$O" --origin-id $ID "$R" --force

# bad WORDS TABLE...: the table is refused with these words in the log
bad() {
	local words=$1
	shift
	expect_fail -m "$words" dmsetup create t --table "$*"
}

bad "requires 2 or more arguments" "0 $N presnap"
bad "requires 2 or more arguments" "0 $N presnap $O"
bad "Cannot get origin device" "0 $N presnap /dev/nothing $R"
bad "Cannot get origin device" "0 $N presnap 999:99 $R"
bad "Cannot get region device" "0 $N presnap $O /dev/nothing"
bad "Region device cannot be the same as origin device" "0 $N presnap $O $O"
bad "Length is not a multiple of the block size" "0 $((N - 1)) presnap $O $R"
bad "Origin device is smaller than the target" "0 $((N + 8)) presnap $O $R"
bad "too large device" "0 9223372036854775800 presnap $O $R"
ok "devices and lengths"

bad "Invalid number of feature arguments" "0 $N presnap $O $R x"
bad "Invalid number of feature arguments" "0 $N presnap $O $R -2 scope delta"
bad "Invalid number of feature arguments" "0 $N presnap $O $R +2 scope delta"
bad "Invalid number of feature arguments" "0 $N presnap $O $R 2x scope delta"
bad "Invalid number of feature arguments" "0 $N presnap $O $R 0x2 scope delta"
bad "Invalid number of feature arguments" "0 $N presnap $O $R 18446744073709551618 scope delta"
bad "Too many feature arguments" "0 $N presnap $O $R 4294967298 scope delta"
bad "Too many feature arguments" "0 $N presnap $O $R 18"
bad "Number of feature arguments must be even" "0 $N presnap $O $R 1 scope"
bad "Not enough feature arguments" "0 $N presnap $O $R 2"
bad "Not enough feature arguments" "0 $N presnap $O $R 4 scope delta on_error"
bad "Unexpected arguments after the features" "0 $N presnap $O $R 0 scope delta"
bad "Unexpected arguments after the features" "0 $N presnap $O $R 2 scope delta more"
bad "Unrecognised feature requested" "0 $N presnap $O $R 2 colour red"
bad "Feature given twice" "0 $N presnap $O $R 4 scope delta SCOPE image"
bad "scope must be delta or image" "0 $N presnap $O $R 2 scope all"
bad "on_error must be drop-snapshot or fail-writes" "0 $N presnap $O $R 2 on_error panic"
for id in 0 ${ID}0 ${ID%f} ${ID%f}g; do
	bad "origin_id must be 32 hexadecimal digits" "0 $N presnap $O $R 2 origin_id $id"
done
long=$(printf 'x%.0s' $(seq 3000))
bad "Unrecognised feature requested" "0 $N presnap $O $R 2 $long red"
ok "features"

expect_fail -m "the device must be opened read-write" dmsetup create t --readonly --table "0 $N presnap $O $R"
bad "Region belongs to another origin" "0 $N presnap $O $R 2 origin_id ${ID%ff}00"
bad "Region belongs to a larger origin: it does not shrink" "0 $((N / 2)) presnap $O $R"
bad "Region is not formatted, or its superblocks are damaged" "0 $N presnap $O $R2"
null_blk small 4M
bad "Region device is too small" "0 $N presnap $O /dev/small"
expect_fail -m "too small" presnap format --origin "$O" /dev/small --force
dmsetup create half --table "0 65536 linear $R 0"
bad "Region device is smaller than when it was formatted" "0 $N presnap $O /dev/mapper/half"
dmsetup remove half
ok "regions that do not fit"

# Good lines. What `table` shows is loaded again, by a reload and by a new device, and shows the same.
devno() { lsblk -dno MAJ:MIN "$1" | tr -d ' '; }
same() { # same TABLE WANTED-ARGUMENTS
	local first again
	dmsetup create p --table "$1"
	first=$(dmsetup table p)
	eq "$first" "0 $N presnap $(devno "$O") $(devno "$R")$2" "table"
	dmsetup reload p --table "$first"
	dmsetup resume p
	again=$(dmsetup table p)
	eq "$again" "$first" "table after a reload"
	dmsetup suspend p
	eq "$(dmsetup table p)" "$first" "table while suspended"
	timeout 5 dmsetup status p >/tmp/status || die "status does not answer while suspended"
	grep -q "^0 $N presnap [0-9]*/[0-9]* [0-9]* 0 0 0 - rw " /tmp/status || die "status: $(cat /tmp/status)"
	dmsetup resume p
	dmsetup remove p
	dmsetup create p --table "$first"
	again=$(dmsetup table p)
	eq "$again" "$first" "table of a new device"
	dmsetup remove p
}
same "0 $N presnap $O $R" ""
same "0 $N presnap $(devno "$O") $(devno "$R") 0" ""
same "0 $N presnap $O $R 2 scope image" " 2 scope image"
same "0 $N presnap $O $R 6 ON_ERROR Fail-Writes Scope DELTA Origin_ID 00112233445566778899AABBCCDDEEFF" \
	" 6 origin_id $ID scope delta on_error fail-writes"
ok "tables load again as they are shown, in whatever case they were written"

# What is in use cannot be used twice, and an open region keeps its size.
dmsetup create p --table "0 $N presnap $O $R"
bad "Region is in use by another presnap device" "0 $N presnap $O $R"
bad "Region is in use by another presnap device" "0 $N presnap $O2 $R"
expect_fail -m "Region belongs to a larger origin: it does not shrink" dmsetup reload p --table "0 $((N / 2)) presnap $O $R"
eq "$(dmsetup table p)" "0 $N presnap $(devno "$O") $(devno "$R")" "the live table after a bad reload"
dmsetup remove p
ok "a region in use"

# A region made for any origin takes every id.
presnap format --origin "$O" --any-origin "$R2" --force
dmsetup create p --table "0 $N presnap $O $R2 2 origin_id $ID"
dmsetup remove p
ok "a region for any origin"

# Damage. Superblocks are blocks 0 and 15, roots 16..23 and 24..31, intent maps 32..39 and 40..47, index block 0 is 128 and 129 (docs/region-format.md).
save() { dd if="$R" of=/tmp/head bs=4096 count=130 iflag=direct status=none; }
restore() { dd if=/tmp/head of="$R" bs=4096 oflag=direct conv=notrunc status=none; }
put() { # put zero|urandom BLOCK [COUNT]
	dd if="/dev/$1" of="$R" bs=4096 seek="$2" count="${3:-1}" oflag=direct iflag=fullblock status=none
}
line="0 $N presnap $O $R"
save
for block in 0 15; do
	for how in zero urandom; do
		restore
		put $how $block
		log_mark
		dmsetup create p --table "$line" || die "one good superblock is not enough (block $block, $how)"
		dmsetup remove p
		log_since | grep -q "one copy of the superblock" || die "a damaged superblock is not reported"
	done
done
ok "one superblock is enough, and the damage is reported"
restore
put urandom 0
put urandom 15
bad "Region is not formatted, or its superblocks are damaged" "$line"
restore
put zero 0
put zero 15
bad "Region is not formatted, or its superblocks are damaged" "$line"
restore
# One flipped bit in both copies: the checksum sees it.
for block in 0 15; do
	dd if=/tmp/head of=/tmp/one bs=4096 skip=$block count=1 status=none
	printf '\377' | dd of=/tmp/one bs=1 seek=50 conv=notrunc status=none
	dd if=/tmp/one of="$R" bs=4096 seek=$block oflag=direct conv=notrunc status=none
done
bad "superblock has a wrong checksum" "$line"
restore
put urandom 16 16
bad "Region is damaged: no valid root" "$line"
restore
put zero 16 16
bad "Region is damaged: no valid root" "$line"
restore
put urandom 128 2
bad "Region is damaged: an index block is not valid" "$line"
restore
for copy in 16 24; do
	restore
	put urandom $copy 8
	if dmsetup create p --table "$line" 2>/dev/null; then
		dmsetup remove p
		echo "opened without root copy $copy"
	else
		die "one good root is not enough (copy at $copy)"
	fi
	save
	# Opening and closing has written the other copy: both are good again.
done
# Without its intent nothing is lost but the knowledge of what has changed.
put urandom 32 16
log_mark
dmsetup create p --table "$line" || die "a region without intent is refused"
log_since | grep -q "intent map has the wrong magic number: the next delta is full" || die "damaged intent is not reported"
dmsetup status p | grep -q ' full-needed$' || die "status without intent: $(dmsetup status p)"
dmsetup remove p
dmsetup create p --table "$line"
dmsetup status p | grep -q ' full-needed$' || die "that intent was lost is forgotten: $(dmsetup status p)"
dmsetup remove p
dmsetup ls | grep -q '^No devices' || die "devices are left of bad tables: $(dmsetup ls)"
presnap check --data "$R"
ok "damaged regions"
