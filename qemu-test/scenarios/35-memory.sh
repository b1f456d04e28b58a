# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# timeout: 200
# The memory that a device takes: so much a TiB of origin and a GiB of region, as README.md says, and all of it is given back.
. /presnap/lib.sh
load
[ -d /sys/module/null_blk ] || modprobe null_blk nr_devices=0
disk() { # disk NAME GIB MEMORY_BACKED: only what is written to it takes memory
	local d=/sys/kernel/config/nullb/$1
	mkdir "$d"
	echo $(($2 * 1024)) >"$d/size"
	echo 4096 >"$d/blocksize"
	echo 0 >"$d/irqmode"
	echo "$3" >"$d/memory_backed"
	echo 1 >"$d/power"
}
kib() { awk -v k="$1:" '$1 == k {print $2}' /proc/meminfo; }
# takes GIB_OF_ORIGIN GIB_OF_REGION: sets vmalloc and all, in KiB
takes() {
	local v a
	disk "o$1" "$1" 0
	disk "r$2" "$2" 1
	presnap format --origin "/dev/o$1" "/dev/r$2" --force >/dev/null 2>&1
	v=$(kib VmallocUsed) a=$(kib MemAvailable)
	dmsetup create m --table "0 $(sectors "/dev/o$1") presnap /dev/o$1 /dev/r$2"
	vmalloc=$(($(kib VmallocUsed) - v)) all=$((a - $(kib MemAvailable)))
	dmsetup remove m
	[ $(($(kib VmallocUsed) - v)) -lt 512 ] || die "$(($(kib VmallocUsed) - v)) KiB are not given back"
	for d in "o$1" "r$2"; do
		echo 0 >"/sys/kernel/config/nullb/$d/power"
		rmdir "/sys/kernel/config/nullb/$d"
	done
}
takes 1 1
small=$vmalloc
note "origin 1 GiB, region 1 GiB: $((all / 1024)) MiB in all, $((vmalloc / 1024)) of it vmalloc"
[ $all -lt $((32 * 1024)) ] || die "more than the 32 MiB of README.md"
takes 1024 1
note "a TiB of origin: $(((vmalloc - small) * 10 / 1023)) KiB a 10 GiB, $(((vmalloc - small) / 1024)) MiB"
[ $((vmalloc - small)) -lt $((230 * 1024)) ] || die "more than the 230 MiB a TiB of README.md"
takes 1 9
note "8 GiB of region: $(((vmalloc - small) / 1024)) MiB"
[ $((vmalloc - small)) -lt $((8 * 7200)) ] || die "more than the 7 MiB a GiB of README.md"
ok "memory"
