// SPDX-License-Identifier: GPL-2.0-only

//! One kernel thread with a place to sleep: a task of the machine.

use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_machine::{Machine, Task, TaskId, WakeUp};
use std::rc::Rc;

/// The place where a thread sleeps until somebody has work for it.
pub struct Wake {
    inner: Rc<WakeUp>,
}

impl Wake {
    /// A place with nobody waiting.
    pub fn new() -> impl PinInit<Self> {
        Ok(Self { inner: Rc::default() })
    }

    /// Wakes the sleeper, or lets its next sleep end at once.
    pub fn wake(&self) {
        self.inner.wake();
    }
}

/// What a thread does.
pub trait Body: 'static {
    /// Called once, before all else.
    fn begin(&mut self) {}

    /// How long to sleep before the next turn if nobody wakes the thread, in microseconds.
    fn sleep_us(&self) -> u32;

    /// Does what there is to do.
    fn turn(&mut self);

    /// Called once, when the thread has been told to stop.
    fn end(&mut self);
}

/// Sleeps for `us` microseconds, as if other threads waited for the CPU.
pub fn rest(us: u32) {
    Machine::current().sleep(u64::from(us) * 1000);
}

/// Asks for turns of `ns` nanoseconds on the CPU, of which there is only one thread here.
pub fn set_slice_ns(_ns: u64) {}

/// The nice value that comes before all others but real time.
pub const MIN_NICE: i32 = -20;

/// Sets the nice value; returns what it was. Nobody competes for the CPU here.
pub fn set_nice(_nice: i32) -> i32 {
    0
}

struct Running<B>(KBox<B>);

impl<B: Body> Task for Running<B> {
    fn begin(&mut self) {
        self.0.begin();
    }

    fn sleep_us(&self) -> u32 {
        self.0.sleep_us()
    }

    fn turn(&mut self) {
        self.0.turn();
    }

    fn end(&mut self) {
        self.0.end();
    }
}

/// A running thread; dropped, it is told to stop and waited for.
pub struct Thread {
    machine: Rc<Machine>,
    task: TaskId,
}

impl Thread {
    /// Starts a thread that runs `body` and sleeps on `wake`.
    ///
    /// # Errors
    ///
    /// None.
    pub fn spawn<B: Body>(_name: &CStr, wake: Arc<Wake>, body: KBox<B>) -> Result<Self> {
        let machine = Machine::current();
        let task = machine.start_task(Box::new(Running(body)), wake.inner.clone());
        Ok(Self { machine, task })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.machine.might_sleep();
        self.machine.stop_task(self.task);
    }
}
