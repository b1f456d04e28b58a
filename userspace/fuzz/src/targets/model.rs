// SPDX-License-Identifier: GPL-2.0-only

//! Model blobs: reader, verifier and inference.

use presnap_engine::features::{FeatureVector, FEATURES};
use presnap_engine::fixed::sigmoid;
use presnap_engine::model::{Model, LAYERS_MAX, WIDTH_MAX};

use crate::bytes::{put_u32, says, Input};
use crate::net::{mend, samples, Net, HEADER};

/// The bytes that the shape in the header asks for, if it can be one.
fn length(header: &[u8]) -> Option<usize> {
    let widths = header.get(22..22 + LAYERS_MAX)?.iter().take(header[21].into());
    let mut inputs = FEATURES;
    let mut len = HEADER + 4;
    for &outputs in widths {
        let outputs = usize::from(outputs).min(WIDTH_MAX);
        len += (inputs * outputs).next_multiple_of(4) + outputs * 12;
        inputs = outputs;
    }
    Some(len)
}

/// The blob: a byte of choices, then its bytes. The payload is made as long as the shape asks for (by saying it again,
/// or cutting it), and length and checksum are put right.
fn blob(input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.u8();
    let given = input.rest();
    let mut blob = given.to_vec();
    if choice & 1 == 0 {
        if let Some(len) = length(&blob) {
            let payload = given.get(HEADER..).unwrap_or_default();
            let payload = if payload.is_empty() { &[1] } else { payload };
            blob.resize(HEADER, 0);
            blob.extend(payload.iter().cycle().take(len - HEADER));
            if choice & 2 == 0 {
                reserved(&mut blob);
            }
        }
    }
    let len = blob.len() as u32;
    if choice & 4 == 0 {
        put_u32(&mut blob, 16, len);
    }
    if choice & 8 == 0 {
        mend(&mut blob);
    }
    blob
}

/// Zeroes what is reserved among the layers, and takes the weight away that there is not: a fuzzer that has changed the
/// shape would have to find all of these again.
fn reserved(blob: &mut [u8]) {
    let mut inputs = FEATURES;
    let mut at = HEADER;
    for layer in 0..usize::from(blob[21]).min(LAYERS_MAX) {
        let outputs = usize::from(blob[22 + layer]).min(WIDTH_MAX);
        let weights = inputs * outputs;
        for w in blob.iter_mut().skip(at).take(weights).filter(|w| **w == 0x80) {
            *w = 0x81;
        }
        blob.iter_mut()
            .skip(at + weights)
            .take(weights.next_multiple_of(4) - weights)
            .for_each(|b| *b = 0);
        at += weights.next_multiple_of(4) + 4 * outputs;
        for requant in blob.get_mut(at..at + 8 * outputs).unwrap_or_default().chunks_exact_mut(8) {
            requant[3] &= 0x7f;
            requant[4] %= 49;
            requant[5..].fill(0);
        }
        at += 8 * outputs;
        inputs = outputs;
    }
}

pub(crate) fn run(data: &[u8]) {
    check(&blob(&mut Input::new(data)));
}

/// An accepted blob computes what its weights say, without an accumulator that leaves its range; and it is the one blob
/// that says so.
pub(crate) fn check(blob: &[u8]) {
    let model = match Model::parse(blob) {
        Ok(model) => model,
        Err(e) => return says(e),
    };
    let net = Net::read(blob);
    assert!(net.write(model.metadata()) == blob, "it is not what was read");
    assert_eq!(model.widths().count(), net.layers.len());
    assert!(model.multiplications() as usize <= FEATURES + LAYERS_MAX * WIDTH_MAX * WIDTH_MAX);
    assert!(model.metadata().name().len() <= 32);
    let mut seed = u64::from(model.checksum());
    let mut vectors = net.extremes();
    vectors.extend((0..8).map(|_| {
        FeatureVector(std::array::from_fn(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 48) as i16
        }))
    }));
    for f in &vectors {
        let answer = net.answer(f);
        assert!(answer.reach <= i128::from(i32::MAX), "{answer:?} of {f:?}");
        assert_eq!(model.logit_q8(f), answer.logit_q8, "{f:?}");
        assert_eq!(model.infer(f), sigmoid(answer.logit_q8));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    samples().iter().map(|blob| [&[0], &blob[..blob.len() - 4]].concat()).collect()
}
