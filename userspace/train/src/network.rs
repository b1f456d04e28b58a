// SPDX-License-Identifier: GPL-2.0-only

//! The network in floating point: its training with candle, and its evaluation.
//!
//! Inputs are the normalised int8 features of the engine (so that their rounding is part of what is
//! learned), divided by [`INPUT_SCALE`]. Weights start from the project's own random numbers and
//! batches are drawn by them, so that a seed gives the same network.

use crate::progress::Progress;
use crate::random::Random;
use anyhow::{ensure, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use presnap_engine::features::FEATURES;

/// A normalised feature of this size is 1.
pub const INPUT_SCALE: f32 = 32.0;
/// Features after the normalisers.
pub type Input = [i8; FEATURES];

/// Samples of a batch: enough steps from few samples, not too many from a lot of them.
fn batch_of(samples: usize) -> usize {
    (samples / 200).clamp(64, 2048)
}

const RATE_FIRST: f64 = 5e-3;
const RATE_LAST: f64 = 1e-4;

/// A layer: `weights` are outputs x inputs.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Weights, output by output.
    pub weights: Vec<f32>,
    /// A bias an output.
    pub biases: Vec<f32>,
}

/// Layers with rectified units between them; the output is a logit.
#[derive(Clone, Debug)]
pub struct Network {
    /// First to last.
    pub layers: Vec<Layer>,
}

impl Network {
    /// Values of the units of every layer for an input, the logit last.
    pub fn activations(&self, input: &Input) -> Vec<Vec<f32>> {
        let mut values: Vec<f32> = input.iter().map(|q| f32::from(*q) / INPUT_SCALE).collect();
        let mut all = Vec::with_capacity(self.layers.len());
        for (no, layer) in self.layers.iter().enumerate() {
            let rectify = no + 1 < self.layers.len();
            values = layer
                .weights
                .chunks_exact(values.len())
                .zip(&layer.biases)
                .map(|(row, bias)| {
                    let sum = row.iter().zip(&values).fold(*bias, |sum, (w, v)| sum + w * v);
                    if rectify {
                        sum.max(0.0)
                    } else {
                        sum
                    }
                })
                .collect();
            all.push(values.clone());
        }
        all
    }

    /// The logit for an input.
    pub fn logit(&self, input: &Input) -> f32 {
        self.activations(input).last().and_then(|l| l.first()).copied().unwrap_or(0.0)
    }
}

/// Trains a network with these hidden layers.
pub fn train(
    samples: &[(Input, bool)],
    hidden: &[usize],
    epochs: u32,
    seed: u64,
    progress: &mut Progress,
) -> Result<Network> {
    // The layers are too small to be worth sharing: two threads spend more on waking each other than
    // they save. Where a pool is set up already, that one is used.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    let device = Device::Cpu;
    let mut random = Random::new(seed);
    let mut vars = Vec::new();
    let mut inputs = FEATURES;
    for outputs in hidden.iter().copied().chain([1]) {
        // He's initialisation.
        let deviation = (2.0 / inputs as f64).sqrt();
        let weights: Vec<f32> =
            (0..inputs * outputs).map(|_| (random.normal() * deviation) as f32).collect();
        vars.push(Var::from_vec(weights, (outputs, inputs), &device)?);
        vars.push(Var::zeros(outputs, DType::F32, &device)?);
        inputs = outputs;
    }
    let params = ParamsAdamW { lr: RATE_FIRST, weight_decay: 1e-4, ..ParamsAdamW::default() };
    let mut optimiser = AdamW::new(vars.clone(), params)?;
    let mut order: Vec<u32> = (0..u32::try_from(samples.len())?).collect();
    let size = batch_of(samples.len());
    let steps = samples.len().div_ceil(size) as u64 * u64::from(epochs);
    let (mut step, mut note) = (0u64, String::new());
    for epoch in 0..epochs {
        let count = order.len();
        random.choose(&mut order, count);
        let mut sum = 0.0;
        for batch in order.chunks(size) {
            let turn = std::f64::consts::PI * step as f64 / steps as f64;
            let rate = RATE_LAST + (RATE_FIRST - RATE_LAST) * (1.0 + turn.cos()) / 2.0;
            optimiser.set_learning_rate(rate);
            let loss = loss(&vars, &gather(samples, batch, &device)?)?;
            optimiser.backward_step(&loss)?;
            sum += f64::from(loss.to_scalar::<f32>()?) * batch.len() as f64;
            step += 1;
            progress.at(step, steps, &note);
        }
        let mean = sum / samples.len() as f64;
        ensure!(mean.is_finite(), "training diverged in epoch {epoch}");
        note = format!(", loss {mean:.4}");
    }
    progress.finish(&note);
    let layers = vars
        .chunks_exact(2)
        .map(|pair| {
            Ok(Layer { weights: pair[0].flatten_all()?.to_vec1()?, biases: pair[1].to_vec1()? })
        })
        .collect::<Result<_>>()?;
    Ok(Network { layers })
}

/// Inputs and labels of a batch.
fn gather(
    samples: &[(Input, bool)],
    batch: &[u32],
    device: &Device,
) -> candle_core::Result<(Tensor, Tensor)> {
    let chosen = || batch.iter().map(|i| &samples[*i as usize]);
    let x: Vec<f32> = chosen().flat_map(|s| s.0).map(|q| f32::from(q) / INPUT_SCALE).collect();
    let y: Vec<f32> = chosen().map(|s| if s.1 { 1.0 } else { 0.0 }).collect();
    Ok((
        Tensor::from_vec(x, (batch.len(), FEATURES), device)?,
        Tensor::from_vec(y, (batch.len(), 1), device)?,
    ))
}

/// Mean cross entropy, in the form that cannot overflow: max(z, 0) - z y + ln(1 + e^-|z|).
fn loss(vars: &[Var], (x, y): &(Tensor, Tensor)) -> candle_core::Result<Tensor> {
    let mut z = x.clone();
    let layers = vars.len() / 2;
    for (no, pair) in vars.chunks_exact(2).enumerate() {
        z = z.matmul(&pair[0].t()?)?.broadcast_add(&pair[1])?;
        if no + 1 < layers {
            z = z.relu()?;
        }
    }
    let soft = (z.abs()?.neg()?.exp()? + 1.0)?.log()?;
    ((z.relu()? - (z * y)?)? + soft)?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_and_repeats() {
        let mut random = Random::new(3);
        let samples: Vec<(Input, bool)> = (0..3000)
            .map(|_| {
                let x: Input = std::array::from_fn(|_| random.below(255) as i8);
                (x, (i32::from(x[0]) > 0) != (i32::from(x[1]) > 0))
            })
            .collect();
        let train = |seed| train(&samples, &[8, 4], 15, seed, &mut Progress::new(true)).unwrap();
        let network = train(1);
        let right = samples.iter().filter(|s| (network.logit(&s.0) > 0.0) == s.1).count();
        assert!(right > 2600, "{right}");
        let again = train(1);
        for (a, b) in network.layers.iter().zip(&again.layers) {
            assert_eq!((&a.weights, &a.biases), (&b.weights, &b.biases));
        }
        assert_ne!(train(2).layers[0].weights, network.layers[0].weights);
    }
}
