// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module with a fault of each kind that the debug kernel has to find: qemu-test/self-test loads it and wants to fail.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *fault = "";
module_param(fault, charp, 0);

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spin);
/* Nothing is read into what the compiler could see to be unused. */
static int sink;

static void use_after_free(void)
{
	int *p = kmalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return;
	OPTIMIZER_HIDE_VAR(p);
	kfree(p);
	OPTIMIZER_HIDE_VAR(p);
	sink = READ_ONCE(*p);
}

static void lock_order(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void sleep_in_atomic(void)
{
	spin_lock(&spin);
	msleep(20);
	spin_unlock(&spin);
}

static void leak(void)
{
	void *p = kmalloc(64, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(p);
}

static int __init faulty_init(void)
{
	if (!strcmp(fault, "use-after-free"))
		use_after_free();
	else if (!strcmp(fault, "lock-order"))
		lock_order();
	else if (!strcmp(fault, "sleep-in-atomic"))
		sleep_in_atomic();
	else if (!strcmp(fault, "leak"))
		leak();
	else
		return -EINVAL;
	return 0;
}
module_init(faulty_init);

static void __exit faulty_exit(void)
{
}
module_exit(faulty_exit);

MODULE_DESCRIPTION("one fault of each kind");
MODULE_LICENSE("GPL");
