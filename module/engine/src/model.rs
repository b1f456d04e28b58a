// SPDX-License-Identifier: GPL-2.0-only

//! Learned models: a blob of weights, checked once, evaluated in integers.
//!
//! A [`Model`] keeps the blob it was parsed from and reads the weights in place, so it is small
//! whatever the blob's size and never lies on a kernel stack as a whole. [`Model::parse`] is the
//! verifier: it checks every field and proves from the actual weights that no accumulator can leave
//! its range, so that inference needs no checks and cannot trap. It always takes the same time.
//!
//! The format is in [`blob`], to the byte; the proof in [`verify`]; the arithmetic of a layer in
//! [`dense`]. Heuristics that need no training are in [`heuristic`].

pub mod blob;
pub mod dense;
pub mod heuristic;
pub mod linear;
pub mod mlp;
pub mod verify;

pub use blob::{BlobError, Metadata, Normaliser};

use crate::features::{FeatureVector, FEATURES};
use crate::fixed::{round_shift, sigmoid, Prob, LOGIT_MAX_Q8};
use core::ops::Deref;

/// Widest layer.
pub const WIDTH_MAX: usize = 32;
/// Most layers, the output included.
pub const LAYERS_MAX: usize = 4;
/// Largest blob in bytes.
pub const BLOB_BYTES_MAX: usize = 64 * 1024;

/// Values that flow between layers.
type Values = [i32; WIDTH_MAX];

/// What computes the output. The numbers are those of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Family {
    /// One layer: logistic regression.
    Linear = 1,
    /// Layers with rectified (ReLU) units between them.
    Mlp = 2,
}

impl Family {
    /// Returns the family of a number in a blob.
    pub const fn from_wire(n: u16) -> Option<Self> {
        match n {
            1 => Some(Self::Linear),
            2 => Some(Self::Mlp),
            _ => None,
        }
    }

    /// The family's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Mlp => "mlp",
        }
    }
}

/// A verified model, in the storage it was handed in (a `KVVec<u8>`, a `Vec<u8>`, a slice).
#[derive(Debug)]
pub struct Model<B> {
    blob: B,
    layout: blob::Layout,
}

impl<B: Deref<Target = [u8]>> Model<B> {
    /// Checks a blob and makes it a model; see [`BlobError`] for what can be wrong with one.
    pub fn parse(blob: B) -> Result<Self, BlobError> {
        let layout = blob::Layout::parse(&blob)?;
        verify::verify(&blob, &layout)?;
        Ok(Self { blob, layout })
    }

    /// Probability that the area with these features is written within the horizon among them.
    pub fn infer(&self, features: &FeatureVector) -> Prob {
        sigmoid(self.logit_q8(features))
    }

    /// The logarithm of the odds in Q8, within [`LOGIT_MAX_Q8`].
    pub fn logit_q8(&self, features: &FeatureVector) -> i32 {
        let mut values = [0; WIDTH_MAX];
        self.normalise(features, &mut values);
        let logit = match self.layout.family {
            Family::Linear => linear::logit(&self.blob, &self.layout, &values),
            Family::Mlp => mlp::logit(&self.blob, &self.layout, &mut values),
        };
        logit.clamp(-i64::from(LOGIT_MAX_Q8), i64::from(LOGIT_MAX_Q8)) as i32
    }

    /// The family.
    pub const fn family(&self) -> Family {
        self.layout.family
    }

    /// What the trainer noted.
    pub const fn metadata(&self) -> &Metadata {
        &self.layout.metadata
    }

    /// Widths of the layers, the output (1) included.
    pub fn widths(&self) -> impl Iterator<Item = u8> + '_ {
        self.layout.layers().map(|l| l.outputs)
    }

    /// Multiplications of one inference.
    pub fn multiplications(&self) -> u32 {
        self.layout.layers().fold(FEATURES as u32, |sum, l| {
            sum.saturating_add(u32::from(l.inputs) * u32::from(l.outputs))
        })
    }

    /// The blob.
    pub fn as_bytes(&self) -> &[u8] {
        &self.blob
    }

    /// The blob's own checksum, a short name for the model.
    pub const fn checksum(&self) -> u32 {
        self.layout.crc
    }

    fn normalise(&self, features: &FeatureVector, out: &mut Values) {
        let normalisers = blob::normalisers(&self.blob);
        for ((out, feature), n) in out.iter_mut().zip(features.0).zip(normalisers) {
            *out = n.apply(feature);
        }
    }
}

impl Normaliser {
    /// Brings a feature to the range of int8.
    pub fn apply(&self, feature: i16) -> i32 {
        // |difference| < 2^17 and the multiplier < 2^16: far inside 64 bits.
        let centred = i64::from(feature).wrapping_sub(i64::from(self.offset));
        let scaled = centred.wrapping_mul(i64::from(self.multiplier));
        round_shift(scaled, u32::from(self.shift)).clamp(-127, 127) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::blob::{encode, LayerSpec, Requant, Spec};
    use super::*;

    /// A model of one layer that reads the first feature only.
    fn simple(out: &mut [u8]) -> usize {
        let mut weights = [0i8; FEATURES];
        weights[0] = 2;
        encode(
            &Spec {
                family: Family::Linear,
                metadata: Metadata { seed: 7, ..Metadata::named("simple") },
                normalisers: &[Normaliser { offset: 256, multiplier: 1, shift: 3 }; FEATURES],
                layers: &[LayerSpec {
                    weights: &weights,
                    biases: &[10],
                    requants: &[Requant { multiplier: 3, shift: 1 }],
                }],
            },
            out,
        )
        .unwrap()
    }

    #[test]
    fn by_hand() {
        let mut buffer = [0; 512];
        let len = simple(&mut buffer);
        let model = Model::parse(&buffer[..len]).unwrap();
        let mut f = FeatureVector::default();
        // (256+80-256)/8 = 10; 10 + 2*10 = 30; 30*3/2 = 45.
        f.0[0] = 336;
        assert_eq!(model.logit_q8(&f), 45);
        assert_eq!(model.infer(&f), sigmoid(45));
        // Saturates at 127: 10 + 254 = 264; 396. And at -127: 10 - 254 = -244; -366.
        f.0[0] = i16::MAX;
        assert_eq!(model.logit_q8(&f), 396);
        f.0[0] = i16::MIN;
        assert_eq!(model.logit_q8(&f), -366);
        assert_eq!(model.metadata().seed, 7);
        assert_eq!(model.metadata().name(), "simple");
        assert_eq!(model.multiplications(), 24);
        assert_eq!(model.widths().collect::<Vec<_>>(), [1]);
        assert_eq!(model.family().name(), "linear");
    }

    #[test]
    fn a_model_is_small() {
        assert!(core::mem::size_of::<Model<Vec<u8>>>() < 256);
    }
}
