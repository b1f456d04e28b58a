// SPDX-License-Identifier: GPL-2.0-only

//! One layer of weights: int8 times int8 (or uint8) into 32-bit accumulators.

use super::blob::{LayerLayout, Requant};
use super::Values;
use crate::fixed::round_shift;

/// Largest activation of a hidden unit.
pub const ACTIVATION_MAX: i64 = 255;

impl Requant {
    /// Brings an accumulator to the next layer's range, not yet clamped to it.
    pub fn apply(&self, accumulator: i32) -> i64 {
        // |product| is at most 2^62 and the shift at most 48, see `round_shift`.
        let product = i64::from(accumulator).wrapping_mul(i64::from(self.multiplier));
        round_shift(product, u32::from(self.shift))
    }
}

/// The requantised outputs of a layer. The verifier has shown that no accumulator wraps.
pub(super) fn outputs<'a>(
    blob: &'a [u8],
    layer: LayerLayout,
    values: &'a Values,
) -> impl Iterator<Item = i64> + 'a {
    let mut rows = layer.weights(blob);
    let mut requants = layer.requants(blob);
    // In step by hand: zipped, the three would be indexed with sums that the compiler checks for overflow.
    layer.biases(blob).map_while(move |bias| {
        let (row, rest) = rows.split_at_checked(layer.inputs.into())?;
        rows = rest;
        let accumulator = row.iter().zip(values).fold(bias, |sum, (weight, value)| {
            sum.wrapping_add(i32::from(*weight as i8).wrapping_mul(*value))
        });
        Some(requants.next()?.apply(accumulator))
    })
}

/// A hidden unit: rectified and saturated to the range of uint8.
pub(super) const fn activate(requantised: i64) -> i32 {
    if requantised < 0 {
        0
    } else if requantised > ACTIVATION_MAX {
        ACTIVATION_MAX as i32
    } else {
        requantised as i32
    }
}
