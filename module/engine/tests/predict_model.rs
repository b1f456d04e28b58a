// SPDX-License-Identifier: GPL-2.0-only

//! Models against an independent reference in wide arithmetic, and blobs against hostile bytes.

use presnap_engine::crc32c::crc32c;
use presnap_engine::features::{FeatureVector, FEATURES};
use presnap_engine::fixed::{sigmoid, LOGIT_MAX_Q8};
use presnap_engine::model::blob::{encode, LayerSpec, Requant, Spec};
use presnap_engine::model::{
    BlobError, Family, Metadata, Model, Normaliser, BLOB_BYTES_MAX, WIDTH_MAX,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Layer {
    weights: Vec<i8>,
    biases: Vec<i32>,
    requants: Vec<Requant>,
}

#[derive(Clone, Debug)]
struct Net {
    normalisers: [Normaliser; FEATURES],
    layers: Vec<Layer>,
}

impl Net {
    fn encode(&self) -> Vec<u8> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|l| LayerSpec { weights: &l.weights, biases: &l.biases, requants: &l.requants })
            .collect();
        let mut out = vec![0xaa; BLOB_BYTES_MAX];
        let family = if layers.len() == 1 { Family::Linear } else { Family::Mlp };
        let spec = Spec {
            family,
            metadata: Metadata { samples: 5, ..Metadata::named("prop") },
            normalisers: &self.normalisers,
            layers: &layers,
        };
        let len = encode(&spec, &mut out).unwrap();
        out.truncate(len);
        out
    }

    /// The documented arithmetic, written down again with numbers that cannot overflow. Also
    /// returns the largest accumulator that any order of summation passes through.
    fn reference(&self, f: &FeatureVector) -> (i32, i128) {
        let round = |x: i128, shift: u8| {
            let divisor = 1i128 << shift;
            (2 * x + divisor).div_euclid(2 * divisor)
        };
        let mut values: Vec<i128> =
            f.0.iter()
                .zip(&self.normalisers)
                .map(|(f, n)| {
                    let scaled = (i128::from(*f) - i128::from(n.offset)) * i128::from(n.multiplier);
                    round(scaled, n.shift).clamp(-127, 127)
                })
                .collect();
        let mut reach = 0;
        for (no, layer) in self.layers.iter().enumerate() {
            let last = no + 1 == self.layers.len();
            values = layer
                .weights
                .chunks(values.len())
                .zip(&layer.biases)
                .zip(&layer.requants)
                .map(|((row, bias), r)| {
                    let terms = row.iter().zip(&values).map(|(w, v)| i128::from(*w) * v);
                    let (mut up, mut down) =
                        (i128::from((*bias).max(0)), i128::from((*bias).min(0)));
                    for t in terms {
                        up += t.max(0);
                        down += t.min(0);
                    }
                    reach = reach.max(up).max(-down);
                    let y = round((up + down) * i128::from(r.multiplier), r.shift);
                    if last {
                        y
                    } else {
                        y.clamp(0, 255)
                    }
                })
                .collect();
        }
        let max = i128::from(LOGIT_MAX_Q8);
        (values[0].clamp(-max, max) as i32, reach)
    }
}

fn layer(
    inputs: usize,
    outputs: usize,
    biases: impl Strategy<Value = i32> + Clone,
) -> impl Strategy<Value = Layer> {
    let requant = (prop_oneof![0..=i32::MAX, 0..100_000i32], 0u8..=48)
        .prop_map(|(multiplier, shift)| Requant { multiplier, shift });
    (
        prop::collection::vec(-127i8..=127, inputs * outputs),
        prop::collection::vec(biases, outputs),
        prop::collection::vec(requant, outputs),
    )
        .prop_map(|(weights, biases, requants)| Layer { weights, biases, requants })
}

fn net(biases: impl Strategy<Value = i32> + Clone + 'static) -> impl Strategy<Value = Net> {
    let normaliser = (any::<i16>(), any::<u16>(), 0u8..=32)
        .prop_map(|(offset, multiplier, shift)| Normaliser { offset, multiplier, shift });
    let widths = prop::collection::vec(1..=WIDTH_MAX, 0..=3);
    (prop::array::uniform12(normaliser), widths).prop_flat_map(move |(normalisers, mut widths)| {
        widths.push(1);
        let mut inputs = FEATURES;
        let mut layers = Vec::new();
        for outputs in widths {
            layers.push(layer(inputs, outputs, biases.clone()).boxed());
            inputs = outputs;
        }
        layers.prop_map(move |layers| Net { normalisers, layers })
    })
}

fn features() -> impl Strategy<Value = FeatureVector> {
    let value = prop_oneof![Just(i16::MIN), Just(i16::MAX), any::<i16>(), 0i16..8192];
    prop::array::uniform12(value).prop_map(FeatureVector)
}

proptest! {
    #[test]
    fn inference_equals_the_reference(
        net in net(-1_000_000..1_000_000i32),
        f in prop::collection::vec(features(), 8),
    ) {
        let blob = net.encode();
        let model = Model::parse(&blob[..]).unwrap();
        for f in f {
            let (logit, _) = net.reference(&f);
            prop_assert_eq!(model.logit_q8(&f), logit);
            prop_assert_eq!(model.infer(&f), sigmoid(logit));
        }
    }

    /// With biases near the end of the range, what passes the verifier never leaves 32 bits, in no
    /// order of summation; and a layer that cannot is not refused.
    #[test]
    fn what_passes_cannot_overflow(
        net in net(prop_oneof![
            any::<i32>(),
            (i32::MAX - 2_000_000)..=i32::MAX,
            i32::MIN..=(i32::MIN + 2_000_000),
        ]),
        f in prop::collection::vec(features(), 8),
    ) {
        let blob = net.encode();
        match Model::parse(&blob[..]) {
            Ok(model) => for f in f {
                let (logit, reach) = net.reference(&f);
                prop_assert!(reach <= i128::from(i32::MAX));
                prop_assert_eq!(model.logit_q8(&f), logit);
            },
            Err(BlobError::Overflow { layer, output, reach }) => {
                let spec = &net.layers[usize::from(layer)];
                let bias = u64::from(spec.biases[usize::from(output)].unsigned_abs());
                prop_assert!(reach > i32::MAX as u64);
                // The inputs are at most 255, so it is the bias that is too large.
                prop_assert!(bias + 32 * 127 * 255 >= reach);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_changed_bit_is_refused(net in net(-1000..1000i32), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut blob = net.encode();
        let at = at.index(blob.len());
        blob[at] ^= 1 << bit;
        let error = Model::parse(&blob[..]).unwrap_err();
        prop_assert!(!error.to_string().is_empty());
    }

    #[test]
    fn a_cut_or_longer_blob_is_refused(net in net(-1000..1000i32), len in any::<prop::sample::Index>(), more in 1usize..9) {
        let blob = net.encode();
        let len = len.index(blob.len());
        let cut = Model::parse(&blob[..len]).unwrap_err();
        prop_assert!(matches!(cut, BlobError::Truncated { .. }), "{}", cut);
        let mut long = blob;
        long.resize(long.len() + more, 0);
        prop_assert_eq!(Model::parse(&long[..]).unwrap_err(), BlobError::TrailingBytes(more));
    }

    /// Bytes may be changed at will and the checksum mended: the answer is a model that works or
    /// an error, never a panic.
    #[test]
    fn hostile_blobs(
        net in net(any::<i32>()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        f in features(),
    ) {
        let mut blob = net.encode();
        for (at, byte) in changes {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        mend(&mut blob);
        match Model::parse(&blob[..]) {
            Ok(model) => { model.infer(&f); }
            Err(error) => { let _ = error.to_string(); }
        }
    }

    #[test]
    fn noise(blob in prop::collection::vec(any::<u8>(), 0..1000)) {
        prop_assert!(Model::parse(&blob[..]).is_err());
        let mut blob = [b"PRESNAPM\x01\0".to_vec(), blob].concat();
        let len = blob.len() as u32;
        if let Some(field) = blob.get_mut(16..20) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        mend(&mut blob);
        prop_assert!(Model::parse(&blob[..]).is_err());
    }
}

fn mend(blob: &mut [u8]) {
    if let Some(body) = blob.len().checked_sub(4) {
        let crc = crc32c(0, &blob[..body]);
        blob[body..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn small() -> Net {
    let layer = |inputs, outputs| Layer {
        weights: vec![1; inputs * outputs],
        biases: vec![1; outputs],
        requants: vec![Requant { multiplier: 1, shift: 0 }; outputs],
    };
    let normaliser = Normaliser { offset: 0, multiplier: 1, shift: 4 };
    Net { normalisers: [normaliser; FEATURES], layers: vec![layer(12, 3), layer(3, 1)] }
}

/// Every reason for refusal, by a blob that has just that fault.
#[test]
fn each_fault_is_named() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut blob = small().encode();
        blob[at..at + bytes.len()].copy_from_slice(bytes);
        mend(&mut blob);
        Model::parse(&blob[..]).unwrap_err()
    };
    // 224 normalisers end; 36 weights, 3 biases, 3 requantisers; 3 weights + 1 zero.
    let first = 224;
    let second = first + 36 + 12 + 24;
    for (error, want, words) in [
        (changed(0, b"X"), BlobError::Magic, "wrong magic"),
        (changed(8, &[2, 0]), BlobError::Version(2), "version 2"),
        (changed(10, &[9, 0]), BlobError::Family(9), "family 9"),
        (changed(12, &[0; 4]), BlobError::Schema(0), "schema 00000000"),
        (changed(20, &[13]), BlobError::Features(13), "13 features"),
        (changed(21, &[5]), BlobError::Layers(5), "5 layers"),
        (changed(21, &[1]), BlobError::Layers(1), "1 layers"),
        (changed(22, &[33]), BlobError::Width { layer: 0, outputs: 33 }, "33 outputs"),
        (changed(22, &[0]), BlobError::Width { layer: 0, outputs: 0 }, "0 outputs"),
        (changed(23, &[2]), BlobError::Width { layer: 1, outputs: 2 }, "layer 1"),
        (changed(25, &[1]), BlobError::Width { layer: 3, outputs: 1 }, "layer 3"),
        (changed(31, &[1]), BlobError::Reserved(31), "byte 31"),
        (changed(127, &[1]), BlobError::Reserved(127), "byte 127"),
        (changed(133, &[1]), BlobError::Reserved(133), "byte 133"),
        (changed(second + 3, &[1]), BlobError::Reserved(second + 3), "not zero"),
        (changed(second + 15, &[1]), BlobError::Reserved(second + 15), "not zero"),
        (changed(72, &[0xff]), BlobError::Name, "name"),
        (changed(72 + 10, b"x"), BlobError::Name, "name"),
        (changed(128 + 8 + 4, &[33]), BlobError::Normaliser { feature: 1, shift: 33 }, "shift 33"),
        (changed(first + 13, &[0x80]), BlobError::Weight { layer: 0, output: 1 }, "-128"),
        (
            changed(first + 48 + 4, &[49]),
            BlobError::Requant { layer: 0, output: 0 },
            "requantiser of layer 0",
        ),
        (
            changed(second + 8, &[0, 0, 0, 0x80]),
            BlobError::Requant { layer: 1, output: 0 },
            "requantiser of layer 1",
        ),
        (
            changed(first + 36 + 4, &i32::MAX.to_le_bytes()),
            BlobError::Overflow { layer: 0, output: 1, reach: i32::MAX as u64 + 12 * 127 },
            "could overflow: layer 0 output 1",
        ),
    ] {
        assert_eq!(error, want);
        assert!(error.to_string().contains(words), "{error}");
    }
    // Fewer outputs than the content has: the content is too long for them.
    assert!(matches!(changed(22, &[2]), BlobError::TrailingBytes(_)));
    assert!(matches!(changed(22, &[4]), BlobError::Truncated { .. }));
    let big = vec![0; BLOB_BYTES_MAX + 1];
    assert_eq!(Model::parse(&big[..]).unwrap_err(), BlobError::TooLarge(BLOB_BYTES_MAX + 1));
    let mut damaged = small().encode();
    damaged[230] ^= 1;
    assert!(matches!(Model::parse(&damaged[..]), Err(BlobError::Checksum { .. })));
    assert_eq!(Model::parse(&b"# not a model"[..]).unwrap_err(), BlobError::Magic);
}

/// The proof uses the range the hidden units really have, not only the largest there is.
#[test]
fn the_proof_is_about_the_actual_weights() {
    let mut net = small();
    // Hidden units of 0: the bias of the output may be as large as 32 bits hold.
    for r in &mut net.layers[0].requants {
        r.multiplier = 0;
    }
    net.layers[1].biases[0] = i32::MAX;
    assert!(Model::parse(net.encode()).is_ok());
    net.layers[1].biases[0] = i32::MIN;
    assert!(matches!(
        Model::parse(net.encode()),
        Err(BlobError::Overflow { layer: 1, output: 0, .. })
    ));
}
