// SPDX-License-Identifier: GPL-2.0-only

//! Large arrays.

use kernel::prelude::*;

/// Longest array that [`array_of`] and [`array_with`] give.
///
/// The tables of the predictor, the ring and the write generations take their size from what they are
/// given and are megabytes on a real machine, which costs more than all else when a device is opened
/// thousands of times. Small ones only make collisions and losses likelier. What must be exact (slots,
/// bitmaps) is shorter than this in a simulation.
pub const LONGEST: usize = 2048;

/// A vector of `len` zeroes.
///
/// # Errors
///
/// None.
pub fn zeroed_array<T: Default>(len: usize) -> Result<KVVec<T>> {
    Ok((0..len).map(|_| T::default()).collect::<Vec<_>>().into())
}

/// A vector of copies of `value`: `len`, or [`LONGEST`].
///
/// # Errors
///
/// None.
pub fn array_of<T: Clone>(len: usize, value: T) -> Result<KVVec<T>> {
    KVVec::from_elem(value, len.min(LONGEST), GFP_KERNEL)
}

/// A vector of what `make` makes: `len`, or [`LONGEST`].
///
/// # Errors
///
/// None.
pub fn array_with<T>(len: usize, mut make: impl FnMut() -> T) -> Result<KVVec<T>> {
    Ok((0..len.min(LONGEST)).map(|_| make()).collect::<Vec<_>>().into())
}

/// While it lives, allocations do not wait for I/O. Here none ever does.
pub struct NoIo(());

impl NoIo {
    /// Begins.
    pub fn enter() -> Self {
        Self(())
    }
}
