// SPDX-License-Identifier: GPL-2.0-only

//! A thread for a worker that comes later. A thread cannot be made while a device is suspended: who makes it, for all, may wait for
//! memory, and so for writes to that device.

use super::Worker;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};
use presnap_abi::thread::{Body, Thread, Wake};

/// Long enough not to matter.
const IDLE_US: u32 = 3_600_000_000;

/// Where the worker is put.
#[pin_data]
struct Place {
    #[pin]
    worker: Mutex<Option<KBox<Worker>>>,
}

/// See the module. Dropped, the thread ends.
pub(crate) struct Seat {
    thread: Thread,
    place: Arc<Place>,
    /// Where the thread sleeps: that of the device which the worker is for.
    pub(crate) wake: Arc<Wake>,
}

struct Sitter {
    place: Arc<Place>,
    worker: Option<KBox<Worker>>,
}

impl Seat {
    /// Starts the thread. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        let wake = Arc::pin_init(Wake::new(), GFP_KERNEL)?;
        let place = Arc::pin_init(
            try_pin_init!(Place {
                worker <- new_mutex!(None, "presnap::seat"),
            }? Error),
            GFP_KERNEL,
        )?;
        let sitter = KBox::new(Sitter { place: place.clone(), worker: None }, GFP_KERNEL)?;
        let thread = Thread::spawn(c"presnap", wake.clone(), sitter)?;
        Ok(Self { thread, place, wake })
    }

    /// Lets the worker begin.
    pub(crate) fn take(self, worker: KBox<Worker>) -> Thread {
        *self.place.worker.lock() = Some(worker);
        self.wake.wake();
        self.thread
    }
}

impl Sitter {
    fn sit_down(&mut self) -> Option<&mut KBox<Worker>> {
        if self.worker.is_none() {
            self.worker = self.place.worker.lock().take();
            if let Some(worker) = &mut self.worker {
                worker.begin();
            }
        }
        self.worker.as_mut()
    }
}

impl Body for Sitter {
    fn sleep_us(&self) -> u32 {
        self.worker.as_ref().map_or(IDLE_US, |worker| worker.sleep_us())
    }

    fn turn(&mut self) {
        if let Some(worker) = self.sit_down() {
            worker.turn();
        }
    }

    fn end(&mut self) {
        if let Some(worker) = self.sit_down() {
            worker.end();
        }
    }
}
