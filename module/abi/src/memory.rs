// SPDX-License-Identifier: GPL-2.0-only

//! Large zeroed arrays for engine structures, and allocations that must not wait for I/O.

use crate::bindings;
use core::marker::PhantomData;
use kernel::alloc::flags::GFP_KERNEL;
use kernel::prelude::*;

/// Types for which all bytes zero is a valid value.
///
/// # Safety
///
/// An implementer must be valid when every byte of it is zero, and must not need dropping.
pub unsafe trait ZeroIsValid {}

// SAFETY: An atomic integer has the representation of the integer; zero is valid.
unsafe impl ZeroIsValid for core::sync::atomic::AtomicU64 {}
// SAFETY: As above.
unsafe impl ZeroIsValid for core::sync::atomic::AtomicU32 {}
// SAFETY: An integer.
unsafe impl ZeroIsValid for u32 {}
// SAFETY: An integer.
unsafe impl ZeroIsValid for u8 {}

/// Returns a vector of `len` zeroed elements, in physically contiguous memory or not.
///
/// Sleeps. Fails with `ENOMEM`.
pub fn zeroed_array<T: ZeroIsValid>(len: usize) -> Result<KVVec<T>> {
    let mut v = KVVec::<T>::with_capacity(len, GFP_KERNEL | kernel::alloc::flags::__GFP_ZERO)?;
    let spare = v.spare_capacity_mut();
    let n = len.min(spare.len());
    // SAFETY: `with_capacity` returned room for at least `len` elements, and `__GFP_ZERO` made it
    // zero, which is a valid `T` by `ZeroIsValid`; so the first `n` elements are initialised.
    unsafe { v.inc_len(n) };
    Ok(v)
}

/// Returns a vector of `len` copies of `value`. Sleeps. Fails with `ENOMEM`.
pub fn array_of<T: Clone>(len: usize, value: T) -> Result<KVVec<T>> {
    Ok(KVVec::from_elem(value, len, GFP_KERNEL)?)
}

/// Returns a vector of `len` elements made by `make`. Sleeps. Fails with `ENOMEM`.
pub fn array_with<T>(len: usize, mut make: impl FnMut() -> T) -> Result<KVVec<T>> {
    let mut v = KVVec::with_capacity(len, GFP_KERNEL)?;
    for _ in 0..len {
        v.push_within_capacity(make())?;
    }
    Ok(v)
}

/// While this exists, no allocation of the current thread waits for I/O: for what I/O waits for in turn.
pub struct NoIo {
    before: u32,
    /// It stays in its thread.
    _here: PhantomData<*mut ()>,
}

impl NoIo {
    /// Begins.
    pub fn enter() -> Self {
        // SAFETY: Sets a flag of the current task; `drop` restores it.
        let before = unsafe { bindings::presnap_noio_save() };
        Self { before, _here: PhantomData }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: What `enter` found, in the same task.
        unsafe { bindings::presnap_noio_restore(self.before) };
    }
}
