// SPDX-License-Identifier: GPL-2.0-only

//! The model blobs of the scenarios in the VM (`qemu-test/blobs`): good ones, and bad ones of each kind.
//!
//! `list` there has a line for each bad blob: its file and the words with which it is refused. This
//! test makes all of them again and compares. After a change of the format or of the words:
//! `PRESNAP_BLESS=1 cargo test -p presnap-engine --test blob_fixtures`.

use presnap_engine::crc32c::crc32c;
use presnap_engine::features::{FeatureVector, FEATURES};
use presnap_engine::model::blob::{encode, LayerSpec, Requant, Spec};
use presnap_engine::model::{Family, Metadata, Model, Normaliser, BLOB_BYTES_MAX};
use std::path::PathBuf;

/// As many vectors as fit in a page: sysfs passes on a page at a time.
const VECTORS: usize = 4096 / (2 * FEATURES);

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn weights(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| (self.next(255) as i16 - 127) as i8).collect()
    }
}

fn blob(name: &str, family: Family, layers: &[LayerSpec<'_>]) -> Vec<u8> {
    let spec = Spec {
        family,
        metadata: Metadata { seed: 1, samples: 1000, ..Metadata::named(name) },
        normalisers: &[Normaliser { offset: 0, multiplier: 64, shift: 10 }; FEATURES],
        layers,
    };
    let mut out = vec![0; BLOB_BYTES_MAX];
    let len = encode(&spec, &mut out).unwrap();
    out.truncate(len);
    out
}

fn layers(seed: u64, widths: &[usize]) -> Vec<(Vec<i8>, Vec<i32>, Vec<Requant>)> {
    let mut random = Random(seed);
    let mut inputs = FEATURES;
    widths
        .iter()
        .map(|&outputs| {
            let weights = random.weights(inputs * outputs);
            let biases = (0..outputs).map(|_| random.next(4001) as i32 - 2000).collect();
            inputs = outputs;
            (weights, biases, vec![Requant { multiplier: 1 << 20, shift: 27 }; outputs])
        })
        .collect()
}

fn net(name: &str, family: Family, layers: &[(Vec<i8>, Vec<i32>, Vec<Requant>)]) -> Vec<u8> {
    let specs: Vec<_> = layers
        .iter()
        .map(|(weights, biases, requants)| LayerSpec { weights, biases, requants })
        .collect();
    blob(name, family, &specs)
}

/// Changes a blob and puts its checksum right again.
fn changed(blob: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut blob = blob.to_vec();
    change(&mut blob);
    let body = blob.len() - 4;
    let crc = crc32c(0, &blob[..body]);
    blob[body..].copy_from_slice(&crc.to_le_bytes());
    blob
}

#[test]
fn the_blobs_of_the_scenarios_are_those_of_the_engine() {
    let mlp = net("fixture mlp", Family::Mlp, &layers(1, &[16, 8, 1]));
    let linear = net("fixture linear", Family::Linear, &layers(2, &[1]));
    let overflowing = {
        let mut layers = layers(1, &[16, 8, 1]);
        layers[1].1[3] = i32::MAX;
        net("overflowing", Family::Mlp, &layers)
    };
    let bad: Vec<(&str, &str, Vec<u8>)> = vec![
        ("truncated", "model is cut off", mlp[..mlp.len() - 100].to_vec()),
        ("header-only", "model is cut off", mlp[..60].to_vec()),
        ("trailing", "bytes follow the end of the model", [&mlp[..], &[0; 8]].concat()),
        ("magic", "not a presnap model: wrong magic", changed(&mlp, |b| b[0] = b'X')),
        ("text", "not a presnap model: wrong magic", b"these are no weights\n".to_vec()),
        ("version", "model format version 2 is not known", changed(&mlp, |b| b[8] = 2)),
        ("family", "model family 99 is not known", changed(&mlp, |b| b[10] = 99)),
        ("schema", "model was trained for feature schema", changed(&mlp, |b| b[12] ^= 1)),
        ("crc", "model is damaged: checksum", {
            let mut b = mlp.clone();
            b[300] ^= 1;
            b
        }),
        ("features", "model has 11 features, expected 12", changed(&mlp, |b| b[20] = 11)),
        ("layers", "a model of this family cannot have 4 layers", changed(&linear, |b| b[21] = 4)),
        ("width", "layer 0 cannot have 200 outputs", changed(&mlp, |b| b[22] = 200)),
        ("reserved", "reserved byte 26 is not zero", changed(&mlp, |b| b[26] = 1)),
        ("normaliser", "normaliser of feature 0 has shift 33", changed(&mlp, |b| b[132] = 33)),
        ("weight", "has the weight -128", changed(&mlp, |b| b[224] = 0x80)),
        ("requant", "requantiser of layer 0 output 0 is out of range", {
            // After the 12 * 16 weights and 16 biases.
            changed(&mlp, |b| b[224 + 192 + 64 + 3] = 0x80)
        }),
        ("overflow", "weights could overflow: layer 1 output 3", overflowing),
    ];
    let mut random = Random(3);
    let vectors: Vec<FeatureVector> = (0..VECTORS)
        .map(|i| {
            let mut f = FeatureVector([0; FEATURES]);
            for value in &mut f.0 {
                *value = match i {
                    0 => i16::MIN,
                    1 => i16::MAX,
                    _ => (random.next(65536) as i32 - 32768) as i16 >> (i % 9),
                };
            }
            f
        })
        .collect();
    let vector_bytes: Vec<u8> =
        vectors.iter().flat_map(|v| v.0).flat_map(|x: i16| x.to_le_bytes()).collect();
    let answers = |blob: &[u8]| -> Vec<u8> {
        let model = Model::parse(blob).unwrap();
        vectors.iter().flat_map(|v| model.infer(v).0.to_le_bytes()).collect()
    };
    let (mlp_answers, linear_answers) = (answers(&mlp), answers(&linear));
    let mut distinct: Vec<_> = mlp_answers.chunks(2).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 20, "the vectors tell little: {} answers", distinct.len());

    let mut list = String::new();
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("mlp.psm".into(), mlp),
        ("linear.psm".into(), linear),
        ("vectors".into(), vector_bytes),
        ("mlp.answers".into(), mlp_answers),
        ("linear.answers".into(), linear_answers),
    ];
    for (name, words, blob) in bad {
        let error = Model::parse(&blob[..]).expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
        list += &format!("bad-{name}.psm {words}\n");
        files.push((format!("bad-{name}.psm"), blob));
    }
    files.push(("list".into(), list.into_bytes()));

    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../qemu-test/blobs");
    if std::env::var_os("PRESNAP_BLESS").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in &files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in &files {
        let found = std::fs::read(dir.join(name)).unwrap_or_default();
        assert!(found == *bytes, "qemu-test/blobs/{name} differs; see the head of this test");
    }
}
