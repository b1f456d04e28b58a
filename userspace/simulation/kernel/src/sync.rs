// SPDX-License-Identifier: GPL-2.0-only

//! Shared values and locks. There is one thread, so a lock that is taken twice is a deadlock, and
//! panics. Before a lock is taken, whoever takes it may be interrupted; while it is held, not.

use crate::alloc::Flags;
use crate::error::Result;
use crate::init::PinInit;
use core::ops::{Deref, DerefMut};
use presnap_machine::Machine;
use std::cell::{OnceCell, RefCell, RefMut};
use std::rc::Rc;

/// A shared value.
pub struct Arc<T: ?Sized>(Rc<T>);

impl<T> Arc<T> {
    /// Shares a value.
    ///
    /// # Errors
    ///
    /// None.
    pub fn new(value: T, _flags: Flags) -> Result<Self> {
        Ok(Self(Rc::new(value)))
    }

    /// Makes a shared value.
    ///
    /// # Errors
    ///
    /// Those of the initialiser.
    pub fn pin_init(init: impl PinInit<T>, flags: Flags) -> Result<Self> {
        Self::new(init.make()?, flags)
    }

    /// Whether both are the same value.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        Rc::ptr_eq(&a.0, &b.0)
    }
}

impl<T: ?Sized> Clone for Arc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A lock; `SPIN` if its holder must not sleep.
pub struct Lock<T, const SPIN: bool>(RefCell<T>);

/// A lock whose holder may sleep, as may who waits for it.
pub type Mutex<T> = Lock<T, false>;

/// A lock whose holder must not sleep.
pub type SpinLock<T> = Lock<T, true>;

impl<T, const SPIN: bool> Lock<T, SPIN> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Takes it.
    ///
    /// # Panics
    ///
    /// If it is taken already, which would be a deadlock, or if it is a mutex and the caller must not
    /// sleep.
    pub fn lock(&self) -> Guard<'_, T, SPIN> {
        let machine = Machine::current();
        machine.preempt();
        if !SPIN {
            machine.might_sleep();
        }
        let value = self.0.try_borrow_mut().expect("deadlock: the lock is held");
        machine.lock(SPIN);
        Guard { value, machine }
    }

    /// Takes it if nobody has.
    pub fn try_lock(&self) -> Option<Guard<'_, T, SPIN>> {
        let machine = Machine::current();
        let value = self.0.try_borrow_mut().ok()?;
        machine.lock(SPIN);
        Some(Guard { value, machine })
    }
}

/// A place that is filled once.
pub struct SetOnce<T>(OnceCell<T>);

impl<T> SetOnce<T> {
    /// An empty one.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    /// What is there.
    pub fn as_ref(&self) -> Option<&T> {
        self.0.get()
    }

    /// Fills it; `false` if it is full.
    pub fn populate(&self, value: T) -> bool {
        self.0.set(value).is_ok()
    }
}

/// The lock is held as long as this lives.
pub struct Guard<'a, T, const SPIN: bool> {
    value: RefMut<'a, T>,
    machine: Rc<Machine>,
}

impl<T, const SPIN: bool> Deref for Guard<'_, T, SPIN> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, const SPIN: bool> DerefMut for Guard<'_, T, SPIN> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T, const SPIN: bool> Drop for Guard<'_, T, SPIN> {
    fn drop(&mut self) {
        self.machine.unlock(SPIN);
    }
}

/// Makes a mutex.
#[macro_export]
macro_rules! new_mutex {
    ($value:expr, $name:literal) => {
        $crate::error::Result::Ok($crate::sync::Mutex::new($value))
    };
}

/// Makes a spin lock.
#[macro_export]
macro_rules! new_spinlock {
    ($value:expr, $name:literal) => {
        $crate::error::Result::Ok($crate::sync::SpinLock::new($value))
    };
}
