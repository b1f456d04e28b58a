// SPDX-License-Identifier: GPL-2.0-only

//! The proof, at load, that a model's weights cannot do harm.
//!
//! Intervals are carried through the layers: each feature lies in -127..=127 after normalisation;
//! from a layer's actual weights and the intervals of its inputs follows how far each accumulator
//! can go, in any order of summation (|bias| plus the sum of |weight| times the largest |input|). If
//! that is more than 32 bits hold, the blob is refused. Otherwise the interval of the requantised
//! and clamped output goes on to the next layer. The rest is bounded by construction: the work by
//! the widths, the requantisation by its checked multiplier and shift.

use super::blob::{
    normalisers, BlobError, Layout, Requant, NORMALISER_SHIFT_MAX, REQUANT_SHIFT_MAX,
};
use super::{dense, LAYERS_MAX, WIDTH_MAX};
use crate::features::FEATURES;

/// Bounds of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    low: i32,
    high: i32,
}

impl Interval {
    const ZERO: Self = Self { low: 0, high: 0 };
    const INPUT: Self = Self { low: -127, high: 127 };

    fn magnitude(self) -> u64 {
        u64::from(self.low.unsigned_abs().max(self.high.unsigned_abs()))
    }
}

/// Checks every number of a blob whose frame is sound.
pub(super) fn verify(blob: &[u8], layout: &Layout) -> Result<(), BlobError> {
    for (feature, n) in (0..FEATURES as u8).zip(normalisers(blob)) {
        if n.shift > NORMALISER_SHIFT_MAX {
            return Err(BlobError::Normaliser { feature, shift: n.shift });
        }
    }
    let mut inputs = [Interval::ZERO; WIDTH_MAX];
    for input in inputs.iter_mut().take(FEATURES) {
        *input = Interval::INPUT;
    }
    for (layer, spec) in (0..LAYERS_MAX as u8).zip(layout.layers()) {
        let mut outputs = [Interval::ZERO; WIDTH_MAX];
        let rows = spec.weights(blob).chunks_exact(usize::from(spec.inputs.max(1)));
        let parts = rows.zip(spec.biases(blob)).zip(spec.requants(blob));
        let outputs_no = 0..WIDTH_MAX as u8;
        for (output, (((row, bias), requant), interval)) in outputs_no.zip(parts.zip(&mut outputs))
        {
            if row.contains(&(i8::MIN as u8)) {
                return Err(BlobError::Weight { layer, output });
            }
            if requant.multiplier < 0 || requant.shift > REQUANT_SHIFT_MAX {
                return Err(BlobError::Requant { layer, output });
            }
            *interval = accumulator(row, bias, &inputs)
                .map_err(|reach| BlobError::Overflow { layer, output, reach })?
                .activated(requant);
        }
        inputs = outputs;
    }
    Ok(())
}

/// Bounds of an accumulator, or how far it could go if that is too far.
fn accumulator(row: &[u8], bias: i32, inputs: &[Interval; WIDTH_MAX]) -> Result<Interval, u64> {
    // At most 32 terms of at most 127 * 255: these sums are below 2^21 and the bias below 2^32.
    let mut reach = u64::from(bias.unsigned_abs());
    let (mut low, mut high) = (i64::from(bias), i64::from(bias));
    for (weight, input) in row.iter().zip(inputs) {
        let weight = i64::from(*weight as i8);
        reach = reach.saturating_add(weight.unsigned_abs().wrapping_mul(input.magnitude()));
        let (a, b) =
            (weight.wrapping_mul(i64::from(input.low)), weight.wrapping_mul(i64::from(input.high)));
        low = low.saturating_add(a.min(b));
        high = high.saturating_add(a.max(b));
    }
    if reach > i32::MAX as u64 {
        return Err(reach);
    }
    // |low| and |high| are at most `reach`.
    Ok(Interval { low: low as i32, high: high as i32 })
}

impl Interval {
    /// The interval of the hidden unit: requantising and clamping never fall.
    fn activated(self, requant: Requant) -> Self {
        Self {
            low: dense::activate(requant.apply(self.low)),
            high: dense::activate(requant.apply(self.high)),
        }
    }
}
