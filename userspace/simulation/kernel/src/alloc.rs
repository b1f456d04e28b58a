// SPDX-License-Identifier: GPL-2.0-only

//! Boxes and vectors whose allocations may fail; here they do not.

use crate::error::code::ENOMEM;
use crate::error::{Error, Result};
use crate::init::PinInit;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;

/// How to allocate.
#[derive(Clone, Copy)]
pub struct Flags;

/// The allocation may wait.
pub const GFP_KERNEL: Flags = Flags;

/// An allocation failed.
#[derive(Clone, Copy, Debug)]
pub struct AllocError;

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        ENOMEM
    }
}

/// An owned value on the heap.
pub struct KBox<T: ?Sized>(Box<T>);

impl<T> KBox<T> {
    /// Puts a value there.
    ///
    /// # Errors
    ///
    /// None.
    pub fn new(value: T, _flags: Flags) -> Result<Self, AllocError> {
        Ok(Self(Box::new(value)))
    }

    /// Takes the value out.
    pub fn into_inner(this: Self) -> T {
        *this.0
    }
}

impl<T: Unpin> KBox<T> {
    /// Makes a value there.
    ///
    /// # Errors
    ///
    /// Those of the initialiser.
    pub fn pin_init(init: impl PinInit<T>, flags: Flags) -> Result<Pin<Self>> {
        Ok(Pin::new(Self::new(init.make()?, flags)?))
    }
}

impl<T: ?Sized> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A vector.
pub struct KVec<T>(Vec<T>);

/// A vector that may be large.
pub type KVVec<T> = KVec<T>;

impl<T> KVec<T> {
    /// An empty one.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// An empty one with room for `n`.
    ///
    /// # Errors
    ///
    /// None.
    pub fn with_capacity(n: usize, _flags: Flags) -> Result<Self> {
        Ok(Self(Vec::with_capacity(n)))
    }

    /// Makes room for `n` more.
    ///
    /// # Errors
    ///
    /// None.
    pub fn reserve(&mut self, n: usize, _flags: Flags) -> Result {
        self.0.reserve(n);
        Ok(())
    }

    /// Adds a value at the end.
    ///
    /// # Errors
    ///
    /// None.
    pub fn push(&mut self, value: T, _flags: Flags) -> Result {
        self.0.push(value);
        Ok(())
    }

    /// Adds a value at the end, for which there is room.
    ///
    /// # Errors
    ///
    /// The value, if there is none.
    pub fn push_within_capacity(&mut self, value: T) -> core::result::Result<(), T> {
        if self.0.len() == self.0.capacity() {
            return Err(value);
        }
        self.0.push(value);
        Ok(())
    }

    /// Keeps only the values that `f` wants.
    pub fn retain(&mut self, f: impl FnMut(&mut T) -> bool) {
        self.0.retain_mut(f);
    }

    /// Drops all values.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes value number `i` out.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn remove(&mut self, i: usize) -> Result<T> {
        if i < self.0.len() {
            Ok(self.0.remove(i))
        } else {
            Err(crate::error::code::EINVAL)
        }
    }
}

impl<T: Clone> KVec<T> {
    /// `n` copies of a value.
    ///
    /// # Errors
    ///
    /// None.
    pub fn from_elem(value: T, n: usize, _flags: Flags) -> Result<Self> {
        Ok(Self(vec![value; n]))
    }
}

impl<T> Default for KVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> From<Vec<T>> for KVec<T> {
    fn from(values: Vec<T>) -> Self {
        Self(values)
    }
}

impl<T> Deref for KVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for KVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
