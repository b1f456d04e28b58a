// SPDX-License-Identifier: GPL-2.0-only

//! One kernel thread with a place to sleep.

use crate::bindings;
use crate::memory::NoIo;
use kernel::bindings as k;
use kernel::prelude::*;
use kernel::sync::{Arc, Completion};
use kernel::types::Opaque;

/// The place where a thread sleeps until somebody has work for it.
///
/// # Invariants
///
/// `inner` is an initialised `presnap_wake`, pinned for as long as it lives.
#[pin_data]
pub struct Wake {
    #[pin]
    inner: Opaque<bindings::presnap_wake>,
}

// SAFETY: A wait queue and an atomic; made to be used from every CPU and context.
unsafe impl Send for Wake {}
// SAFETY: As above.
unsafe impl Sync for Wake {}

impl Wake {
    /// Creates a place with nobody waiting and no work pending.
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: `presnap_wake_init` initialises the whole struct, in its final place.
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes and pinned; the function initialises it.
            inner <- Opaque::ffi_init(|slot| unsafe { bindings::presnap_wake_init(slot) }),
        })
    }

    /// Wakes the sleeper, or lets its next sleep end at once. Callable from any context.
    pub fn wake(&self) {
        // SAFETY: Initialised by the type invariant; waking is allowed in any context.
        unsafe { bindings::presnap_wake_up(self.inner.get()) }
    }

    /// Sleeps until woken, until the thread is told to stop, or for about `timeout_us`
    /// microseconds (rounded up to the kernel's tick). Only for the thread that owns the place.
    fn wait(&self, timeout_us: u32) {
        // SAFETY: Initialised by the type invariant; called in process context of a kthread.
        unsafe { bindings::presnap_wake_wait(self.inner.get(), timeout_us) }
    }
}

/// What a thread does. All of it is called in the thread, in turns: `begin`, then again and again
/// a sleep and a `turn`, and when it has been told to stop, `end`.
pub trait Body: Send + 'static {
    /// Called once, before all else.
    fn begin(&mut self) {}

    /// How long to sleep before the next turn if nobody wakes the thread, in microseconds.
    fn sleep_us(&self) -> u32;

    /// Does what there is to do. Should return soon: only then is it seen that the thread shall
    /// stop.
    fn turn(&mut self);

    /// Called once, when the thread has been told to stop.
    fn end(&mut self);
}

/// Whether the current thread has been told to stop.
fn should_stop() -> bool {
    // SAFETY: Only called from a kthread.
    unsafe { k::kthread_should_stop() }
}

/// Sleeps for `us` microseconds if other threads wait for this CPU. A thread that does not sleep must
/// call this often: the scheduler may take two of its ticks to interrupt it.
pub fn rest(us: u32) {
    // SAFETY: In process context, with no lock held that forbids sleeping.
    unsafe { bindings::presnap_rest(us) };
}

/// Asks for turns of `ns` nanoseconds (100,000 at least) on the CPU: the shorter, the sooner a turn
/// comes once this thread is woken.
pub fn set_slice_ns(ns: u64) {
    // SAFETY: Changes the current task, from process context.
    unsafe { bindings::presnap_set_slice(ns) };
}

/// The nice value that comes before all others but real time.
pub const MIN_NICE: i32 = -20;

/// Sets the nice value of this thread, [`MIN_NICE`] to 19; returns what it was.
pub fn set_nice(nice: i32) -> i32 {
    // SAFETY: Changes the current task, from process context.
    unsafe { bindings::presnap_set_nice(nice) }
}

/// A running kernel thread; dropped, it is told to stop and waited for.
///
/// # Invariants
///
/// `task` is a thread created by `kthread_create_on_node` that has not been stopped, and a
/// reference to it is held; `wake` is where it sleeps.
pub struct Thread {
    task: *mut k::task_struct,
    wake: Arc<Wake>,
}

// SAFETY: The pointer is only passed to functions that may be called from any thread.
unsafe impl Send for Thread {}
// SAFETY: As above.
unsafe impl Sync for Thread {}

/// What a new thread is given.
struct Start<B> {
    body: KBox<B>,
    wake: Arc<Wake>,
    running: Arc<Completion>,
}

/// # Safety
///
/// Called by the kthread code, once, with the pointer that `Thread::spawn` passed.
unsafe extern "C" fn trampoline<B: Body>(data: *mut kernel::ffi::c_void) -> kernel::ffi::c_int {
    // SAFETY: `data` is the pointer made by `KBox::into_raw` in `Thread::spawn`, handed over once.
    let start = unsafe { KBox::from_raw(data.cast::<Start<B>>()) };
    let Start { mut body, wake, running } = KBox::into_inner(start);
    running.complete_all();
    drop(running);
    // All that this thread ever does is on the way of I/O.
    let _no_io = NoIo::enter();
    body.begin();
    while !should_stop() {
        wake.wait(body.sleep_us());
        body.turn();
    }
    body.end();
    drop(body);
    drop(wake);
    // `kthread_stop` needs the thread to exist until it is called.
    while !should_stop() {
        // SAFETY: Sleeping in a kthread; any wake-up is fine.
        unsafe { k::schedule_timeout_interruptible(1) };
    }
    0
}

impl Thread {
    /// Starts a thread named `name` that runs `body`, and that sleeps on `wake`. When this returns, the
    /// thread has the body: one that is told to stop before it has begun never does, and nobody drops it.
    ///
    /// Sleeps. Fails with `ENOMEM`, or `EINTR` when the caller is being killed.
    pub fn spawn<B: Body>(name: &CStr, wake: Arc<Wake>, body: KBox<B>) -> Result<Self> {
        let running = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let start = Start { body, wake: wake.clone(), running: running.clone() };
        let start = KBox::new(start, GFP_KERNEL)?;
        let data = KBox::into_raw(start);
        // SAFETY: The format consumes one string; `data` stays valid until the trampoline, the
        // only one to get it, turns it back into a box.
        let task = unsafe {
            k::kthread_create_on_node(
                Some(trampoline::<B>),
                data.cast(),
                k::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        };
        let task = match kernel::error::from_err_ptr(task) {
            Ok(task) => task,
            Err(e) => {
                // SAFETY: The thread was not created, so the box was not handed over.
                drop(unsafe { KBox::from_raw(data) });
                return Err(e);
            }
        };
        // SAFETY: A new thread waits for its first wake-up; `kthread_stop` drops this reference.
        unsafe { k::get_task_struct(task) };
        // SAFETY: As above.
        unsafe { k::wake_up_process(task) };
        running.wait_for_completion();
        // INVARIANT: Created, referenced, not stopped.
        Ok(Self { task, wake })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.wake.wake();
        // SAFETY: By the type invariant the task is referenced and was not stopped before.
        unsafe { k::kthread_stop(self.task) };
        // SAFETY: The reference taken in `spawn`.
        unsafe { k::put_task_struct(self.task) };
    }
}
