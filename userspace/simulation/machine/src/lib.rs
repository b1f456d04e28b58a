// SPDX-License-Identifier: GPL-2.0-only

//! A machine that runs in one thread: a clock that moves only when something says so, disks whose
//! requests end when the seed wants it, a task that is woken, and a user who acts in between.
//!
//! Everything random comes from one seed, and nothing else decides: a seed repeats a run exactly.
//! A machine is entered ([`Machine::enter`]); what stands in for the kernel then finds it by
//! [`Machine::current`]. Machines can be entered within each other, so that a copy of the disks can be
//! looked at by another machine while the first one waits.
//!
//! Time passes in [`Machine::preempt`] too, which the stand-ins call wherever the kernel's code
//! could be interrupted, as long as no lock is held: requests end there, and the user acts, as
//! if on another CPU.

pub mod blocks;
pub mod disk;
pub mod log;
mod task;

use disk::{Disk, DiskEvent, Request};
use fastrand::Rng;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
pub use task::{Task, TaskId, WakeUp};

/// Whose turn it is besides the task and the disks: the one who uses the machine.
pub trait User {
    /// Something is about to happen, and power may fail before it.
    fn observe(&self);

    /// A request is about to be submitted to a disk.
    fn submitting(&self, disk: usize, request: &Request);

    /// Its time has come ([`Machine::call_user_at`]).
    fn act(&self);
}

enum Event {
    Disk(usize, DiskEvent),
    User,
}

/// How fast things go; times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// At most so much passes between two points where the task can be interrupted.
    pub step_ns: u64,
    /// At most so much passes until a woken task runs.
    pub wake_ns: u64,
    /// One in so many allocations that may fail does; 0 for none.
    pub alloc_fails_one_in: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { step_ns: 100, wake_ns: 20_000, alloc_fails_one_in: 0 }
    }
}

/// See the crate.
pub struct Machine {
    /// Tells machines apart in device numbers.
    id: u32,
    now: Cell<u64>,
    pace: Pace,
    rng: RefCell<Rng>,
    disks: RefCell<Vec<Disk>>,
    events: RefCell<BTreeMap<(u64, u32, u64), Event>>,
    serial: Cell<u64>,
    user: RefCell<Option<Rc<dyn User>>>,
    tasks: RefCell<Vec<task::Slot>>,
    locks: Cell<u32>,
    /// Spin locks that are held, and other reasons why nobody may sleep.
    atomic: Cell<u32>,
    delivering: Cell<bool>,
    looking: Cell<bool>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Machine>>> = const { RefCell::new(None) };
    static MACHINES: Cell<u32> = const { Cell::new(0) };
}

/// Real time when the machine starts, nanoseconds since 1970.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

/// The machine is the current one as long as this lives.
pub struct Entered {
    before: Option<Rc<Machine>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| *current = self.before.take());
    }
}

impl Machine {
    /// A machine with these disks, which starts at `now` (of the monotonic clock).
    pub fn new(seed: u64, now: u64, pace: Pace, disks: Vec<Disk>) -> Rc<Self> {
        let id = MACHINES.get();
        MACHINES.set(id.wrapping_add(1));
        Rc::new(Self {
            id,
            now: Cell::new(now),
            pace,
            rng: RefCell::new(Rng::with_seed(seed)),
            disks: RefCell::new(disks),
            events: RefCell::new(BTreeMap::new()),
            serial: Cell::new(0),
            user: RefCell::new(None),
            tasks: RefCell::new(Vec::new()),
            locks: Cell::new(0),
            atomic: Cell::new(0),
            delivering: Cell::new(false),
            looking: Cell::new(false),
        })
    }

    /// Makes it the current machine until the returned value is dropped.
    pub fn enter(self: &Rc<Self>) -> Entered {
        let before = CURRENT.with_borrow_mut(|current| current.replace(self.clone()));
        Entered { before }
    }

    /// The current machine.
    ///
    /// # Panics
    ///
    /// If none was entered.
    pub fn current() -> Rc<Self> {
        CURRENT.with_borrow(|current| current.clone()).expect("no machine was entered")
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The monotonic clock.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// The real-time clock.
    pub fn realtime(&self) -> u64 {
        EPOCH_NS + self.now.get()
    }

    /// A random number below `n`, or 0.
    pub fn random(&self, n: u64) -> u64 {
        self.rng.borrow_mut().u64(..n.max(1))
    }

    /// Whether an allocation that may fail does.
    pub fn alloc_fails(&self) -> bool {
        let one_in = self.pace.alloc_fails_one_in;
        one_in > 0 && self.random(one_in.into()) == 0
    }

    /// Looks at a disk.
    pub fn disk<R>(&self, number: usize, look: impl FnOnce(&Disk) -> R) -> R {
        look(&self.disks.borrow()[number])
    }

    /// Changes a disk.
    pub fn disk_mut<R>(&self, number: usize, change: impl FnOnce(&mut Disk, &mut Rng) -> R) -> R {
        change(&mut self.disks.borrow_mut()[number], &mut self.rng.borrow_mut())
    }

    /// The number of disks.
    pub fn disks(&self) -> usize {
        self.disks.borrow().len()
    }

    /// Sets who uses the machine.
    pub fn set_user(&self, user: Option<Rc<dyn User>>) {
        *self.user.borrow_mut() = user;
    }

    /// Lets the user act at a time.
    pub fn call_user_at(&self, time: u64) {
        self.schedule(time, Event::User);
    }

    fn schedule(&self, time: u64, event: Event) {
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        // Events of one time come in a random order.
        let tie = self.rng.borrow_mut().u32(..);
        self.events.borrow_mut().insert((time.max(self.now.get()), tie, serial), event);
    }

    /// The user looks, outside of time: whatever it does then changes nothing.
    fn look(&self, look: impl FnOnce(&dyn User)) {
        let Some(user) = self.user.borrow().clone() else { return };
        let outer = self.looking.replace(true);
        let atomic = self.atomic.replace(0);
        look(&*user);
        self.atomic.set(atomic);
        self.looking.set(outer);
    }

    /// Submits a request to a disk; its end is told when the time has come.
    pub fn submit(&self, number: usize, request: Request) {
        self.look(|user| user.submitting(number, &request));
        let now = self.now.get();
        let events = {
            let mut disks = self.disks.borrow_mut();
            disks[number].submit(now, request, &mut self.rng.borrow_mut())
        };
        for (time, event) in events {
            self.schedule(time, Event::Disk(number, event));
        }
    }

    /// A lock is held from now on: nothing else happens until it is released, and if it is a spin lock,
    /// nobody may sleep.
    pub fn lock(&self, spin: bool) {
        self.locks.set(self.locks.get() + 1);
        self.atomic.set(self.atomic.get() + u32::from(spin));
    }

    /// A lock was released.
    pub fn unlock(&self, spin: bool) {
        self.locks.set(self.locks.get() - 1);
        self.atomic.set(self.atomic.get() - u32::from(spin));
    }

    /// Does something that must not sleep.
    pub fn atomic<R>(&self, action: impl FnOnce() -> R) -> R {
        self.atomic.set(self.atomic.get() + 1);
        let result = action();
        self.atomic.set(self.atomic.get() - 1);
        result
    }

    /// The caller may be about to sleep.
    ///
    /// # Panics
    ///
    /// If it must not.
    pub fn might_sleep(&self) {
        assert!(self.atomic.get() == 0, "sleeps where it must not");
    }

    /// A point where whoever runs may be interrupted: a little time passes, and what is due happens.
    pub fn preempt(&self) {
        if self.looking.get() {
            return;
        }
        let step = self.random(self.pace.step_ns.max(1));
        self.now.set(self.now.get() + step);
        if self.locks.get() == 0 && !self.delivering.get() {
            while self.deliver(self.now.get()) {}
        }
    }

    /// Whoever runs sleeps for so long.
    ///
    /// # Panics
    ///
    /// If it must not sleep.
    pub fn sleep(&self, ns: u64) {
        self.might_sleep();
        assert!(!self.delivering.get(), "slept while an event was dealt with");
        let until = self.now.get() + ns;
        while self.deliver(until) {}
        self.now.set(self.now.get().max(until));
    }

    /// Whoever runs sleeps until `done`.
    ///
    /// # Panics
    ///
    /// If that never comes, or if it must not sleep.
    pub fn wait_for(&self, done: impl Fn() -> bool) {
        self.might_sleep();
        assert!(!self.delivering.get(), "waited while an event was dealt with");
        while !done() {
            assert!(self.deliver(u64::MAX), "waits for ever");
        }
    }

    /// When the next event comes.
    fn next_event(&self) -> Option<u64> {
        self.events.borrow().first_key_value().map(|(key, _)| key.0)
    }

    /// Lets the next event happen, if it comes at `until` or before; whether there was one.
    fn deliver(&self, until: u64) -> bool {
        if self.next_event().is_none_or(|time| time > until) {
            return false;
        }
        self.look(|user| user.observe());
        let Some(((time, _, _), event)) = self.events.borrow_mut().pop_first() else {
            return false;
        };
        self.now.set(self.now.get().max(time));
        // As if on another CPU: what the one that was interrupted may not do does not matter.
        let outer = self.delivering.replace(true);
        let atomic = self.atomic.replace(0);
        match event {
            Event::User => {
                let user = self.user.borrow().clone();
                if let Some(user) = user {
                    user.act();
                }
            }
            Event::Disk(number, event) => {
                let end = {
                    let mut disks = self.disks.borrow_mut();
                    disks[number].happen(event, &mut self.rng.borrow_mut())
                };
                if let Some((done, outcome)) = end {
                    self.atomic(|| done(outcome));
                }
            }
        }
        self.atomic.set(atomic);
        self.delivering.set(outer);
        true
    }

    /// The next thing happens: an event, or a turn of a task. `false` if nothing comes until `until`,
    /// which it is then.
    pub fn step(&self, until: u64) -> bool {
        let event = self.next_event().unwrap_or(u64::MAX);
        let task = self.next_task();
        match task {
            Some((time, number)) if time <= event => {
                if time > until {
                    self.now.set(self.now.get().max(until));
                    return false;
                }
                self.now.set(self.now.get().max(time));
                self.run_task(number);
                self.look(|user| user.observe());
                true
            }
            _ if event > until => {
                self.now.set(self.now.get().max(until));
                false
            }
            _ => self.deliver(until),
        }
    }
}
