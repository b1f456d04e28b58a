/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What Rust cannot call: inline functions and macros of the block layer, device-mapper and the
 * scheduler. One line each; no logic lives here. Also the input of the second bindgen pass.
 */
#ifndef PRESNAP_SHIM_H
#define PRESNAP_SHIM_H

#include <linux/types.h>
#include <linux/blkdev.h>
#include <linux/bio.h>
#include <linux/wait.h>
#include <linux/device-mapper.h>
#include <linux/dm-io.h>

/* A sleeping place of one thread: pending is set by wakers, taken by the sleeper. */
struct presnap_wake {
	wait_queue_head_t queue;
	atomic_t pending;
};

void presnap_wake_init(struct presnap_wake *wake);
void presnap_wake_up(struct presnap_wake *wake);
void presnap_wake_wait(struct presnap_wake *wake, unsigned int timeout_us);
unsigned int presnap_noio_save(void);
void presnap_noio_restore(unsigned int before);
void presnap_rest(unsigned int us);
void presnap_set_slice(u64 ns);
int presnap_set_nice(int nice);

void presnap_bio_set_dev(struct bio *bio, struct block_device *bdev);
void presnap_bio_endio(struct bio *bio, unsigned char status);
struct bio *presnap_bio_clone(struct block_device *bdev, struct bio *bio, struct bio_set *pool);
bool presnap_bdev_write_cache(struct block_device *bdev);
u64 presnap_bdev_sectors(struct block_device *bdev);
unsigned int presnap_bdev_discard_granularity(struct block_device *bdev);

struct kobject *presnap_target_kobject(struct dm_target *ti);
dev_t presnap_target_dev(struct dm_target *ti);
const char *presnap_target_name(struct dm_target *ti);
void presnap_attribute_init(struct attribute *attr);

u32 presnap_crc32c(const void *data, size_t length);
u64 presnap_realtime_ns(void);
u64 presnap_monotonic_ns(void);
unsigned int presnap_cpu(void);
int presnap_read_only(struct dm_target *ti);

#endif
