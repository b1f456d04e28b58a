# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# timeout: 300
# cost: 20
# /dev/presnap: a reader selects a device, gets the records of a known pattern, and is told how many it has lost.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region) R2=$(serial_disk region2)
N=$(sectors "$O")
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
wait_for 5 test -c /dev/presnap
number() { lsblk -dno MAJ:MIN "$1" | tr -d ' '; }

# Selecting.
exec 3<>/dev/presnap
if dd bs=4096 count=1 <&3 2>/tmp/said; then die "read without a device"; fi
grep -q 'No such device' /tmp/said || die "read without a device: $(cat /tmp/said)"
bad() { # bad ERROR TEXT
	if printf '%s' "$2" 2>/tmp/said >&3; then die "selected '$2'"; fi
	grep -q "$1" /tmp/said || die "'$2': $(cat /tmp/said)"
}
for text in x 254 254: :0 254:0:0 254:-1 ' : ' 0x1:0 4096:0 254:1048576 99999999999:0 "$(printf '1%.0s' $(seq 100))"; do
	bad 'Invalid argument' "$text"
done
bad 'No such device' 254:99
bad 'No such device' "$(number "$O")"
exec 3>&-
ok "bad selections"

dmsetup create p --table "0 $N presnap $O $R"
D=/dev/mapper/p
dmsetup create v --table "0 8 linear $O 0" # a mapped device that is not ours
exec 3<>/dev/presnap
bad 'No such device' "$(number /dev/mapper/v)"
dmsetup remove v
number $D >&3 # with a line end
# What it was selected for is kept until another one is.
bad 'Invalid argument' nonsense
if dd bs=31 count=1 <&3 2>/dev/null; then die "a read of less than a record"; fi

# One record a line: time op sector sectors kind. Drains what is there.
records() { dd bs=4096 <&3 2>/dev/null | od -An -v -t u8 -w32 | awk '{print $1, $2, $3, $4 % 4294967296, int($4 / 4294967296)}'; }
records >/dev/null
before=$(cat /sys/block/dm-0/presnap/op)
for i in 5 3 9; do dd if=/dev/zero of=$D bs=4k count=1 seek=$i oflag=direct status=none; done
dd if=/dev/zero of=$D bs=64k count=1 seek=2 oflag=direct status=none
blkdiscard -o $((1 << 20)) -l 65536 $D
blkdiscard -z -o $((2 << 20)) -l 8192 $D
dd if=$D of=/dev/null bs=4k count=1 skip=7 iflag=direct status=none
records >/tmp/records
# Kinds: 0 read, 1 write, 2 discard, 3 write-zeroes, 4 flush. Reads of a new opener (partition probes) are no matter.
awk -v b="$before" '$5 >= 1 && $5 <= 3 {print $2 - b, $3, $4, $5}' /tmp/records >/tmp/got
printf '%s\n' '1 40 8 1' '2 24 8 1' '3 72 8 1' '4 256 128 1' '5 2048 128 2' '6 4096 16 3' >/tmp/want
cmp /tmp/got /tmp/want || { cat /tmp/records; die "other records than what was written"; }
grep -q "^[0-9]* $((before + 6)) 56 8 0\$" /tmp/records || { cat /tmp/records; die "no record of the read"; }
awk '$1 < t {exit 1} {t = $1}' /tmp/records || die "times go backwards"
begin=$(now_ms)
eq "$(dd bs=4096 count=1 <&3 2>/dev/null | wc -c)" 0 "bytes when there is nothing to read"
[ $(($(now_ms) - begin)) -ge 90 ] || die "a read of nothing does not wait"
ok "records of a known pattern"

# A second reader has its own place, and begins with the oldest record.
exec 4<>/dev/presnap
number $D >&4
first=$(dd bs=32 count=1 <&4 2>/dev/null | od -An -v -t u8 -w32 | awk '{print $2}')
[ "$first" -le $((before + 1)) ] || die "a new reader begins with operation $first"
exec 4>&-

# Small reads give whole records.
dd if=/dev/zero of=$D bs=4k count=3 oflag=direct status=none
eq "$(dd bs=100 count=1 <&3 2>/dev/null | wc -c)" 96 "bytes of a read of 100"
records >/dev/null
ok "readers"

# More than the ring holds (65536): the oldest are lost and counted, none is torn, numbers still ascend.
null_blk quick 64M
presnap format --origin /dev/quick "$R2" --force >/dev/null 2>&1
dmsetup create q --table "0 $N presnap /dev/quick $R2"
D=/dev/mapper/q
number $D >&3
records >/dev/null
before=$(cat /sys/block/dm-1/presnap/op)
fio --name=w --filename=$D --rw=randwrite --bs=4k --size=64M --io_size=272M --norandommap --direct=1 --ioengine=libaio --iodepth=32 >/tmp/fio.log || { cat /tmp/fio.log; die fio; }
after=$(cat /sys/block/dm-1/presnap/op)
note "$(grep -o 'run=.*' /tmp/fio.log)"
records >/tmp/records
lost=$(awk '$5 == 255 {n += $2; k++} END {print n + 0}' /tmp/records)
kept=$(awk '$5 != 255' /tmp/records | wc -l)
note "$((after - before)) writes, $kept records read, $lost lost"
[ "$lost" -ge $((after - before - 65536)) ] || die "only $lost losses are counted"
eq "$(awk '$5 == 255 {if ($1 || $3 || $4 || NR > 1) print}' /tmp/records)" "" "loss records with other fields set, or not in front"
[ $((lost + kept)) -ge $((after - before)) ] || die "records went missing: $lost lost + $kept kept < $((after - before))"
# Every kept write has its own number; writers on two CPUs may be recorded a little out of order.
awk '$5 == 1 {print $2}' /tmp/records >/tmp/ops
eq "$(sort -n /tmp/ops | uniq -d | wc -l)" 0 "numbers seen twice"
eq "$(sort -n /tmp/ops | tail -n 1)" "$after" "the last operation"
eq "$(awk '$5 == 1 && ($4 != 8 || $3 % 8 || $3 >= 131072)' /tmp/records | wc -l)" 0 "records that no write can have made"
ok "losses are counted"

# A reader of a device that goes away: the records stay until it closes.
dd if=/dev/zero of=$D bs=4k count=1 oflag=direct status=none
dmsetup remove q
dmsetup remove p
records >/tmp/records
grep -q " $((after + 1)) 0 8 1\$" /tmp/records || die "the last record is gone with the device"
exec 3>&-
rmmod dm_presnap
ok "a reader that outlives the device"
