// SPDX-License-Identifier: GPL-2.0-only

//! From floating point to the engine's integers.
//!
//! Normalisers map the range in which a feature is usually found to -127..=127. Each output of a
//! layer has its own weight scale and each hidden unit its own activation scale, folded into the
//! requantiser, which costs nothing at inference. The range of a hidden unit is that of the training
//! samples.

use crate::network::{Input, Network, INPUT_SCALE};
use anyhow::{ensure, Context, Result};
use presnap_engine::features::{FeatureVector, FEATURES, NEVER};
use presnap_engine::fixed::LOGIT_MAX_Q8;
use presnap_engine::model::blob::{encode, LayerSpec, Requant, Spec, REQUANT_SHIFT_MAX};
use presnap_engine::model::{Family, Metadata, Normaliser, BLOB_BYTES_MAX};

/// A quantised layer.
#[derive(Clone, Debug)]
pub struct Layer {
    weights: Vec<i8>,
    biases: Vec<i32>,
    requants: Vec<Requant>,
}

/// A quantised network.
#[derive(Clone, Debug)]
pub struct Quantised {
    normalisers: [Normaliser; FEATURES],
    layers: Vec<Layer>,
}

/// Normalisers for features that are distributed like these.
///
/// The value for "never" is left out of the range where it is not the rule: it saturates.
pub fn normalisers(features: &[FeatureVector]) -> [Normaliser; FEATURES] {
    std::array::from_fn(|i| {
        let mut values: Vec<i16> = features.iter().map(|f| f.0[i]).collect();
        values.sort_unstable();
        let known = values.partition_point(|v| *v < NEVER);
        let ever = known < values.len();
        values.truncate(known);
        let at = |part: usize| values.get((values.len().max(1) - 1) * part / 1000).copied();
        let (low, mut high) = (f64::from(at(2).unwrap_or(0)), f64::from(at(998).unwrap_or(0)));
        if ever {
            // Room for "never" to stand apart from the largest known value.
            high += ((high - low) / 8.0).max(256.0);
        }
        if high <= low {
            return Normaliser { offset: low as i16, multiplier: 0, shift: 0 };
        }
        let factor = 254.0 / (high - low);
        let shift = (1..=32u8).rev().find(|s| factor * f64::from(*s).exp2() < 65535.0).unwrap_or(1);
        Normaliser {
            offset: ((low + high) / 2.0).round() as i16,
            multiplier: (factor * f64::from(shift).exp2()).round() as u16,
            shift,
        }
    })
}

/// Features after the normalisers.
pub fn normalise(normalisers: &[Normaliser; FEATURES], features: &FeatureVector) -> Input {
    std::array::from_fn(|i| normalisers[i].apply(features.0[i]) as i8)
}

impl Quantised {
    /// Quantises a network; `calibration` are training inputs, from which the ranges are taken.
    pub fn of(
        network: &Network,
        normalisers: [Normaliser; FEATURES],
        calibration: &[Input],
    ) -> Result<Self> {
        ensure!(!calibration.is_empty(), "nothing to take the ranges of activations from");
        let activations: Vec<_> = calibration.iter().map(|x| network.activations(x)).collect();
        // What an input of 1 stands for.
        let mut input_scales = vec![1.0 / f64::from(INPUT_SCALE); FEATURES];
        let mut layers = Vec::new();
        for (no, layer) in network.layers.iter().enumerate() {
            let last = no + 1 == network.layers.len();
            let mut quantised =
                Layer { weights: Vec::new(), biases: Vec::new(), requants: Vec::new() };
            let mut output_scales = Vec::new();
            let rows = layer.weights.chunks_exact(input_scales.len());
            for (unit, (row, bias)) in rows.zip(&layer.biases).enumerate() {
                // The scales of the inputs are folded into the weights.
                let row: Vec<f64> =
                    row.iter().zip(&input_scales).map(|(w, s)| f64::from(*w) * s).collect();
                let largest = row.iter().fold(0.0f64, |m, w| m.max(w.abs()));
                ensure!(
                    bias.is_finite() && row.iter().all(|w| w.is_finite()),
                    "layer {no} has a weight that is not a number"
                );
                // A bias far above the weights would leave 32 bits: then the weights are rounded.
                let scale = (largest / 127.0).max(f64::from(bias.abs()) / 1e9).max(1e-12);
                quantised.weights.extend(row.iter().map(|w| (w / scale).round() as i8));
                quantised.biases.push((f64::from(*bias) / scale).round() as i32);
                let output_scale = if last {
                    1.0 / 256.0
                } else {
                    ceiling(activations.iter().map(|a| a[no][unit])) / 255.0
                };
                quantised.requants.push(requant(scale / output_scale)?);
                output_scales.push(output_scale);
            }
            layers.push(quantised);
            input_scales = output_scales;
        }
        Ok(Self { normalisers, layers })
    }

    /// Writes the blob.
    pub fn encode(&self, metadata: Metadata) -> Result<Vec<u8>> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|l| LayerSpec { weights: &l.weights, biases: &l.biases, requants: &l.requants })
            .collect();
        let spec = Spec {
            family: if layers.len() == 1 { Family::Linear } else { Family::Mlp },
            metadata,
            normalisers: &self.normalisers,
            layers: &layers,
        };
        let mut blob = vec![0; BLOB_BYTES_MAX];
        let length = encode(&spec, &mut blob).context("cannot write the model")?;
        blob.truncate(length);
        Ok(blob)
    }

    /// The logit in Q8 by wide arithmetic: what the engine must give, written down again.
    pub fn reference_logit_q8(&self, features: &FeatureVector) -> i32 {
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
        for (no, layer) in self.layers.iter().enumerate() {
            let last = no + 1 == self.layers.len();
            let rows = layer.weights.chunks_exact(values.len());
            values = rows
                .zip(&layer.biases)
                .zip(&layer.requants)
                .map(|((row, bias), r)| {
                    let sum: i128 = row.iter().zip(&values).map(|(w, v)| i128::from(*w) * v).sum();
                    let y = round((sum + i128::from(*bias)) * i128::from(r.multiplier), r.shift);
                    if last {
                        y
                    } else {
                        y.clamp(0, 255)
                    }
                })
                .collect();
        }
        let max = i128::from(LOGIT_MAX_Q8);
        values.first().map_or(0, |v| (*v).clamp(-max, max) as i32)
    }
}

/// The largest value. Not a percentile: the areas that are written are the few at the end.
fn ceiling(values: impl Iterator<Item = f32>) -> f64 {
    // A unit that is never active needs some scale.
    f64::from(values.fold(0.0, f32::max)).max(1e-6)
}

/// The requantiser nearest to a factor.
fn requant(factor: f64) -> Result<Requant> {
    ensure!(factor.is_finite() && factor >= 0.0, "a scale of the model is not a number");
    let shift = (0..=REQUANT_SHIFT_MAX)
        .rev()
        .find(|s| factor * f64::from(*s).exp2() < f64::from(i32::MAX))
        .context("a scale of the model is too large")?;
    Ok(Requant { multiplier: (factor * f64::from(shift).exp2()).round() as i32, shift })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Layer as FloatLayer;
    use crate::random::Random;
    use presnap_engine::model::Model;

    fn features(random: &mut Random) -> FeatureVector {
        FeatureVector(std::array::from_fn(|i| {
            if i == 7 && random.below(3) > 0 {
                NEVER
            } else {
                random.below(5000) as i16
            }
        }))
    }

    #[test]
    fn normalisers_span_the_range() {
        let mut random = Random::new(1);
        let all: Vec<_> = (0..5000).map(|_| features(&mut random)).collect();
        let n = normalisers(&all);
        for i in [0, 7] {
            assert!(n[i].apply(0) < -120, "{i}");
            assert!((90..=127).contains(&n[i].apply(4999)), "{i}");
        }
        assert!(n[7].apply(4999) < 116 && n[7].apply(NEVER) == 127);
        let same = normalisers(&[FeatureVector([9; FEATURES]); 3]);
        assert_eq!(same[0].apply(9), 0);
        let never = normalisers(&[FeatureVector([NEVER; FEATURES]); 3]);
        assert_eq!(never[0].apply(NEVER), 127);
    }

    #[test]
    fn near_the_float_network_and_equal_to_the_engine() {
        let mut random = Random::new(2);
        let mut inputs = FEATURES;
        let layers = [16, 8, 1]
            .into_iter()
            .map(|outputs| {
                let weights = (0..inputs * outputs).map(|_| random.normal() as f32 * 0.5).collect();
                let biases = (0..outputs).map(|_| random.normal() as f32 * 0.3).collect();
                inputs = outputs;
                FloatLayer { weights, biases }
            })
            .collect();
        let network = Network { layers };
        let all: Vec<_> = (0..3000).map(|_| features(&mut random)).collect();
        let n = normalisers(&all);
        let inputs: Vec<_> = all.iter().map(|f| normalise(&n, f)).collect();
        let quantised = Quantised::of(&network, n, &inputs).unwrap();
        let blob = quantised.encode(Metadata::named("test")).unwrap();
        let model = Model::parse(&blob[..]).unwrap();
        let mut error = 0.0;
        for (f, x) in all.iter().zip(&inputs) {
            assert_eq!(model.logit_q8(f), quantised.reference_logit_q8(f));
            let want = f64::from(network.logit(x)).clamp(-12.0, 12.0);
            error += (f64::from(model.logit_q8(f)) / 256.0 - want).abs();
        }
        let mean = error / all.len() as f64;
        assert!(mean < 0.05, "{mean}");
    }

    #[test]
    fn odd_networks() {
        let network = |w, b| Network {
            layers: vec![FloatLayer { weights: vec![w; FEATURES], biases: vec![b] }],
        };
        let n = normalisers(&[FeatureVector::default()]);
        for (w, b) in [(0.0, 0.0), (0.0, 1e6), (1e-30, 1.0), (1e6, -1e6)] {
            let q = Quantised::of(&network(w, b), n, &[[0; FEATURES]]).unwrap();
            Model::parse(q.encode(Metadata::default()).unwrap()).unwrap();
        }
        assert!(Quantised::of(&network(f32::NAN, 0.0), n, &[[0; FEATURES]]).is_err());
        assert!(Quantised::of(&network(1.0, 0.0), n, &[]).is_err());
    }
}
