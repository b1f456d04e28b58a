// SPDX-License-Identifier: GPL-2.0-only

#include <linux/crc32c.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/sched/stat.h>
#include <uapi/linux/sched/types.h>
#include <linux/timekeeping.h>

#include "shim.h"

void presnap_wake_init(struct presnap_wake *wake)
{
	init_waitqueue_head(&wake->queue);
	atomic_set(&wake->pending, 0);
}

void presnap_wake_up(struct presnap_wake *wake)
{
	if (!atomic_xchg(&wake->pending, 1))
		wake_up(&wake->queue);
}

void presnap_wake_wait(struct presnap_wake *wake, unsigned int timeout_us)
{
	/* Short waits keep a promise to the microsecond; long ones may slip, and must not count as load. */
	if (timeout_us < 20 * USEC_PER_MSEC)
		wait_event_hrtimeout(wake->queue,
				     atomic_xchg(&wake->pending, 0) || kthread_should_stop(),
				     us_to_ktime(timeout_us));
	else
		wait_event_idle_timeout(wake->queue,
					atomic_xchg(&wake->pending, 0) || kthread_should_stop(),
					usecs_to_jiffies(timeout_us) + 1);
}

void presnap_rest(unsigned int us)
{
	/*
	 * Giving the CPU away is not enough: whoever gets it keeps it until the next tick, while this thread, being
	 * runnable, is not woken by anything. A timer is.
	 */
	if (!single_task_running())
		usleep_range_state(us, us + us / 4, TASK_IDLE);
}

void presnap_set_slice(u64 ns)
{
	struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = SCHED_NORMAL,
		.sched_nice = task_nice(current),
		.sched_runtime = ns,
	};

	/* A wish: without it, all works, only less promptly. */
	WARN_ON_ONCE(sched_setattr_nocheck(current, &attr));
}

int presnap_set_nice(int nice)
{
	int before = task_nice(current);

	set_user_nice(current, nice);
	return before;
}

unsigned int presnap_noio_save(void)
{
	return memalloc_noio_save();
}

void presnap_noio_restore(unsigned int before)
{
	memalloc_noio_restore(before);
}

void presnap_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

void presnap_bio_endio(struct bio *bio, unsigned char status)
{
	bio->bi_status = (__force blk_status_t)status;
	bio_endio(bio);
}

struct bio *presnap_bio_clone(struct block_device *bdev, struct bio *bio, struct bio_set *pool)
{
	return bio_alloc_clone(bdev, bio, GFP_NOWAIT, pool);
}

bool presnap_bdev_write_cache(struct block_device *bdev)
{
	return bdev_write_cache(bdev);
}

u64 presnap_bdev_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

unsigned int presnap_bdev_discard_granularity(struct block_device *bdev)
{
	return bdev_discard_granularity(bdev);
}

struct kobject *presnap_target_kobject(struct dm_target *ti)
{
	return &disk_to_dev(dm_disk(dm_table_get_md(ti->table)))->kobj;
}

dev_t presnap_target_dev(struct dm_target *ti)
{
	return disk_devt(dm_disk(dm_table_get_md(ti->table)));
}

const char *presnap_target_name(struct dm_target *ti)
{
	return dm_table_device_name(ti->table);
}

void presnap_attribute_init(struct attribute *attr)
{
	sysfs_attr_init(attr);
}

u32 presnap_crc32c(const void *data, size_t length)
{
	return ~crc32c(~0U, data, length);
}

u64 presnap_realtime_ns(void)
{
	return ktime_get_real_ns();
}

u64 presnap_monotonic_ns(void)
{
	return ktime_get_ns();
}

unsigned int presnap_cpu(void)
{
	return raw_smp_processor_id();
}

int presnap_read_only(struct dm_target *ti)
{
	return !(dm_table_get_mode(ti->table) & BLK_OPEN_WRITE);
}
