// SPDX-License-Identifier: GPL-2.0-only

//! A model, read and computed a second time: by the documented bytes and in numbers that cannot overflow.

use presnap_engine::crc32c::crc32c;
use presnap_engine::features::{FeatureVector, FEATURES};
use presnap_engine::fixed::LOGIT_MAX_Q8;
use presnap_engine::model::blob::{encode, LayerSpec, Requant, Spec};
use presnap_engine::model::{Family, Metadata, Normaliser, BLOB_BYTES_MAX};

use crate::bytes::{put_u32, Input};

/// Where the normalisers of a blob begin, and where they end.
const NORMALISERS: usize = 128;
/// Bytes before the layers.
pub const HEADER: usize = NORMALISERS + 8 * FEATURES;

/// Puts the checksum of a blob right.
pub fn mend(blob: &mut [u8]) {
    if let Some(body) = blob.len().checked_sub(4) {
        let crc = crc32c(0, &blob[..body]);
        put_u32(blob, body, crc);
    }
}

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Weights, output by output.
    pub weights: Vec<i8>,
    /// Biases.
    pub biases: Vec<i32>,
    /// Requantisers.
    pub requants: Vec<Requant>,
}

/// A model.
#[derive(Clone, Debug)]
pub struct Net {
    /// The normalisers.
    pub normalisers: [Normaliser; FEATURES],
    /// The layers, the output last.
    pub layers: Vec<Layer>,
}

/// What a net answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The logit.
    pub logit_q8: i32,
    /// The largest magnitude that an accumulator passes through, in whatever order it is summed up.
    pub reach: i128,
}

impl Net {
    /// Reads a blob that has been accepted.
    pub fn read(blob: &[u8]) -> Self {
        let mut input = Input::new(&blob[NORMALISERS..]);
        let mut normalisers = [Normaliser::default(); FEATURES];
        for n in &mut normalisers {
            let (offset, multiplier) = (input.u16() as i16, input.u16());
            *n = Normaliser { offset, multiplier, shift: input.u8() };
            input.take(3);
        }
        let mut inputs = FEATURES;
        let mut layers = Vec::new();
        for &outputs in &blob[22..][..blob[21].into()] {
            let outputs = usize::from(outputs);
            let weights = input.take(inputs * outputs).iter().map(|&w| w as i8).collect();
            input.take((inputs * outputs).next_multiple_of(4) - inputs * outputs);
            let biases = (0..outputs).map(|_| input.u32() as i32).collect();
            let requant = |_| {
                let requant = Requant { multiplier: input.u32() as i32, shift: input.u8() };
                input.take(3);
                requant
            };
            let requants = (0..outputs).map(requant).collect();
            layers.push(Layer { weights, biases, requants });
            inputs = outputs;
        }
        assert_eq!(input.rest().len(), 4, "the checksum and nothing else");
        Self { normalisers, layers }
    }

    /// Writes a blob.
    pub fn write(&self, metadata: &Metadata) -> Vec<u8> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|l| LayerSpec { weights: &l.weights, biases: &l.biases, requants: &l.requants })
            .collect();
        let family = if layers.len() == 1 { Family::Linear } else { Family::Mlp };
        let spec =
            Spec { family, metadata: *metadata, normalisers: &self.normalisers, layers: &layers };
        let mut out = vec![0xaa; BLOB_BYTES_MAX];
        let len = encode(&spec, &mut out).expect("a blob of this shape");
        out.truncate(len);
        out
    }

    /// Computes it.
    pub fn answer(&self, features: &FeatureVector) -> Answer {
        let round = |x: i128, shift: u8| {
            let divisor = 1i128 << shift;
            (2 * x + divisor).div_euclid(2 * divisor)
        };
        let mut values: Vec<i128> = features
            .0
            .iter()
            .zip(&self.normalisers)
            .map(|(f, n)| {
                let scaled = (i128::from(*f) - i128::from(n.offset)) * i128::from(n.multiplier);
                round(scaled, n.shift).clamp(-127, 127)
            })
            .collect();
        let mut reach = 0;
        for (no, layer) in self.layers.iter().enumerate() {
            let hidden = no + 1 < self.layers.len();
            let rows = layer.weights.chunks(values.len()).zip(&layer.biases).zip(&layer.requants);
            values = rows
                .map(|((row, bias), r)| {
                    let terms = || row.iter().zip(&values).map(|(w, v)| i128::from(*w) * v);
                    let bias = i128::from(*bias);
                    let up: i128 = terms().map(|t| t.max(0)).sum();
                    let down: i128 = terms().map(|t| t.min(0)).sum();
                    reach = reach.max(bias.max(0) + up).max(-(bias.min(0) + down));
                    let y = round((bias + up + down) * i128::from(r.multiplier), r.shift);
                    if hidden {
                        y.clamp(0, 255)
                    } else {
                        y
                    }
                })
                .collect();
        }
        let most = i128::from(LOGIT_MAX_Q8);
        Answer { logit_q8: values[0].clamp(-most, most) as i32, reach }
    }

    /// Features that push the accumulators as far as they go: all low, all high, and after the signs of each row of
    /// the first layer.
    pub fn extremes(&self) -> Vec<FeatureVector> {
        let end = |up: bool| if up { i16::MAX } else { i16::MIN };
        let mut out: Vec<_> =
            [i16::MIN, -1, 0, 1, i16::MAX].map(|v| FeatureVector([v; FEATURES])).to_vec();
        for row in self.layers.first().into_iter().flat_map(|l| l.weights.chunks(FEATURES)) {
            for flip in [false, true] {
                let mut v = FeatureVector::default();
                v.0.iter_mut().zip(row).for_each(|(v, w)| *v = end((*w >= 0) != flip));
                out.push(v);
            }
        }
        out
    }
}

/// Good models of several shapes.
pub fn samples() -> Vec<Vec<u8>> {
    let layer = |inputs: usize, outputs: usize, bias: i32| Layer {
        weights: (0..inputs * outputs)
            .map(|i| (i * 37 % 255) as u8 as i8)
            .map(|w| w.max(-127))
            .collect(),
        biases: vec![bias; outputs],
        requants: vec![Requant { multiplier: 1 << 20, shift: 24 }; outputs],
    };
    // The first accumulator of this one reaches the last number of 32 bits, and not further.
    let mut full = layer(12, 2, 0);
    for (bias, row) in full.biases.iter_mut().zip(full.weights.chunks(12)) {
        *bias = i32::MAX - row.iter().map(|w| 127 * i32::from(w.unsigned_abs())).sum::<i32>();
    }
    let normalisers = std::array::from_fn(|i| Normaliser {
        offset: 100 * i as i16,
        multiplier: 1000 + i as u16,
        shift: 14,
    });
    let net = |layers| Net { normalisers, layers };
    [
        net(vec![layer(12, 1, 10)]),
        net(vec![layer(12, 3, -5), layer(3, 1, 7)]),
        net(vec![full, layer(2, 1, 0)]),
        net(vec![layer(12, 16, 100), layer(16, 8, 0), layer(8, 1, -1000)]),
        net(vec![
            layer(12, 2, i32::MAX - 100_000),
            layer(2, 2, 0),
            layer(2, 2, 1),
            layer(2, 1, i32::MIN / 2),
        ]),
    ]
    .iter()
    .map(|net| net.write(&Metadata { samples: 1000, ..Metadata::named("seed") }))
    .collect()
}
