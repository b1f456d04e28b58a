// SPDX-License-Identifier: GPL-2.0-only

//! The model blob: its format to the byte, the reader of its frame, and the writer.
//!
//! All little endian. Bytes that are reserved are zero, and a blob where they are not is refused.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `PRESNAPM` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 2 | family: 1 linear, 2 mlp |
//! | 12 | 4 | feature schema, [`crate::features::SCHEMA_HASH`] |
//! | 16 | 4 | length of the blob in bytes |
//! | 20 | 1 | features, 12 |
//! | 21 | 1 | layers, 1 to 4, the output included |
//! | 22 | 4 | outputs of each layer, 1 to 32, the last layer's 1; 0 for layers that are not there |
//! | 26 | 6 | reserved |
//! | 32 | 8 | seed of the training |
//! | 40 | 8 | hash of the training data |
//! | 48 | 8 | wall-clock time of the newest training record in seconds, 0 if not known |
//! | 56 | 4 | training samples |
//! | 60 | 2 | share of positive samples in permille |
//! | 62 | 2 | average precision on held-out data in permille |
//! | 64 | 2 | the same of `ewma` |
//! | 66 | 2 | area under the ROC curve in permille |
//! | 68 | 2 | the same of `ewma` |
//! | 70 | 2 | reserved |
//! | 72 | 32 | name, UTF-8, padded with zeroes |
//! | 104 | 24 | reserved |
//! | 128 | 96 | 12 normalisers: i16 offset, u16 multiplier, u8 shift (at most 32), 3 reserved |
//! | 224 | | the layers, one after the other |
//! | end - 4 | 4 | CRC-32C of all before |
//!
//! A layer of I inputs and O outputs: O x I weights i8, output by output, none of them -128; zeroes
//! up to a multiple of 4; O biases i32; O requantisers {i32 multiplier >= 0, u8 shift (at most 48),
//! 3 reserved}.

use super::{Family, BLOB_BYTES_MAX, LAYERS_MAX, WIDTH_MAX};
use crate::crc32c::crc32c;
use crate::features::{FEATURES, SCHEMA_HASH};
use core::fmt;

/// First bytes of a blob.
pub const MAGIC: [u8; 8] = *b"PRESNAPM";
/// Version of the format.
pub const VERSION: u16 = 1;
/// Largest shift of a normaliser.
pub const NORMALISER_SHIFT_MAX: u8 = 32;
/// Largest shift of a requantiser.
pub const REQUANT_SHIFT_MAX: u8 = 48;

const HEADER_BYTES: usize = 128;
const NORMALISER_BYTES: usize = 8;
const PAYLOAD: usize = HEADER_BYTES + FEATURES * NORMALISER_BYTES;
const REQUANT_BYTES: usize = 8;
const CRC_BYTES: usize = 4;
const NAME: usize = 72;
/// Bytes of a model's name.
pub const NAME_BYTES: usize = 32;

/// Why a blob is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobError {
    /// Shorter than the smallest blob, or than its own length field says.
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Larger than [`BLOB_BYTES_MAX`].
    TooLarge(usize),
    /// More bytes than the content needs.
    TrailingBytes(usize),
    /// Does not begin with [`MAGIC`].
    Magic,
    /// A format version that is not known.
    Version(u16),
    /// A family that is not known.
    Family(u16),
    /// Made for other features.
    Schema(u32),
    /// The checksum does not match.
    Checksum {
        /// Stored in the blob.
        stored: u32,
        /// Computed from the content.
        computed: u32,
    },
    /// A number of features other than [`FEATURES`].
    Features(u8),
    /// A number of layers the family does not have.
    Layers(u8),
    /// A layer of no or too many outputs, or an output layer of more than one.
    Width {
        /// The layer.
        layer: u8,
        /// Its outputs.
        outputs: u8,
    },
    /// A reserved byte is not zero.
    Reserved(usize),
    /// The name is not UTF-8, or not padded with zeroes.
    Name,
    /// A normaliser's shift is too large.
    Normaliser {
        /// The feature.
        feature: u8,
        /// Its shift.
        shift: u8,
    },
    /// A weight is -128, which int8 symmetric weights do not use.
    Weight {
        /// The layer.
        layer: u8,
        /// The output.
        output: u8,
    },
    /// A requantiser's multiplier is negative or its shift too large.
    Requant {
        /// The layer.
        layer: u8,
        /// The output.
        output: u8,
    },
    /// The weights could make a 32-bit accumulator overflow.
    Overflow {
        /// The layer.
        layer: u8,
        /// The output.
        output: u8,
        /// The largest magnitude that could be reached.
        reach: u64,
    },
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { need, have } => {
                write!(f, "model is cut off: {have} bytes where {need} are needed")
            }
            Self::TooLarge(have) => {
                write!(
                    f,
                    "model of {have} bytes is too large, at most {BLOB_BYTES_MAX} are allowed"
                )
            }
            Self::TrailingBytes(extra) => write!(f, "{extra} bytes follow the end of the model"),
            Self::Magic => write!(f, "not a presnap model: wrong magic"),
            Self::Version(v) => {
                write!(f, "model format version {v} is not known, expected {VERSION}")
            }
            Self::Family(n) => write!(f, "model family {n} is not known"),
            Self::Schema(s) => {
                write!(f, "model was trained for feature schema {s:08x}, this is {SCHEMA_HASH:08x}")
            }
            Self::Checksum { stored, computed } => {
                write!(f, "model is damaged: checksum {computed:08x}, stored {stored:08x}")
            }
            Self::Features(n) => write!(f, "model has {n} features, expected {FEATURES}"),
            Self::Layers(n) => write!(f, "a model of this family cannot have {n} layers"),
            Self::Width { layer, outputs } => {
                write!(f, "layer {layer} cannot have {outputs} outputs")
            }
            Self::Reserved(at) => write!(f, "reserved byte {at} is not zero"),
            Self::Name => write!(f, "model name is not zero-padded UTF-8"),
            Self::Normaliser { feature, shift } => {
                write!(
                    f,
                    "normaliser of feature {feature} has shift {shift}, at most 32 is allowed"
                )
            }
            Self::Weight { layer, output } => {
                write!(f, "layer {layer} output {output} has the weight -128, which is not allowed")
            }
            Self::Requant { layer, output } => {
                write!(f, "requantiser of layer {layer} output {output} is out of range")
            }
            Self::Overflow { layer, output, reach } => write!(
                f,
                "weights could overflow: layer {layer} output {output} can reach {reach}, the \
                 accumulator holds {}",
                i32::MAX
            ),
        }
    }
}

impl core::error::Error for BlobError {}

/// What the trainer noted about a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Seed of the training.
    pub seed: u64,
    /// Hash of the training data.
    pub data_hash: u64,
    /// Wall-clock time of the newest training record, 0 if not known.
    pub data_end_realtime_s: u64,
    /// Training samples.
    pub samples: u32,
    /// Share of positive samples.
    pub base_permille: u16,
    /// Average precision on held-out data.
    pub ap_permille: u16,
    /// Average precision of `ewma` on the same.
    pub ap_ewma_permille: u16,
    /// Area under the ROC curve on held-out data.
    pub auc_permille: u16,
    /// Area under the ROC curve of `ewma` on the same.
    pub auc_ewma_permille: u16,
    /// Name, padded with zeroes.
    pub name_bytes: [u8; NAME_BYTES],
}

impl Metadata {
    /// Notes of a name only, which is cut to [`NAME_BYTES`] bytes.
    pub fn named(name: &str) -> Self {
        let mut bytes = [0; NAME_BYTES];
        let mut left = bytes.iter_mut();
        for c in name.chars().filter(|c| *c != '\0') {
            let mut utf8 = [0; 4];
            let utf8 = c.encode_utf8(&mut utf8).as_bytes();
            if left.len() < utf8.len() {
                break;
            }
            for (from, to) in utf8.iter().zip(left.by_ref()) {
                *to = *from;
            }
        }
        Self { name_bytes: bytes, ..Self::default() }
    }

    /// The name.
    pub fn name(&self) -> &str {
        let mut parts = self.name_bytes.split(|b| *b == 0);
        core::str::from_utf8(parts.next().unwrap_or(&[])).unwrap_or("")
    }
}

/// Where the parts of a checked blob lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) metadata: Metadata,
    pub(super) crc: u32,
    layers: [LayerLayout; LAYERS_MAX],
}

/// Where a layer lies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LayerLayout {
    pub(super) inputs: u8,
    pub(super) outputs: u8,
    offset: u32,
}

impl LayerLayout {
    fn weights_len(self) -> usize {
        usize::from(self.inputs) * usize::from(self.outputs)
    }

    /// Bytes of the weights and the zeroes after them.
    fn padded_len(self) -> usize {
        pad(self.weights_len())
    }

    fn len(self) -> usize {
        let per_output = size_of::<i32>() + REQUANT_BYTES;
        self.padded_len() + usize::from(self.outputs) * per_output
    }

    /// The weights, output by output.
    pub(super) fn weights(self, blob: &[u8]) -> &[u8] {
        slice(blob, self.offset as usize, self.weights_len())
    }

    /// The zeroes after the weights: offset and bytes.
    fn padding(self, blob: &[u8]) -> (usize, &[u8]) {
        let at = (self.offset as usize).wrapping_add(self.weights_len());
        (at, slice(blob, at, self.padded_len().wrapping_sub(self.weights_len())))
    }

    /// The biases.
    pub(super) fn biases(self, blob: &[u8]) -> impl Iterator<Item = i32> + '_ {
        let at = (self.offset as usize).wrapping_add(self.padded_len());
        slice(blob, at, usize::from(self.outputs) * 4).chunks_exact(4).map(|b| le_u32(b, 0) as i32)
    }

    /// The requantisers' bytes and their offset.
    fn requant_bytes(self, blob: &[u8]) -> (usize, &[u8]) {
        let len = usize::from(self.outputs) * REQUANT_BYTES;
        let at = (self.offset as usize).wrapping_add(self.len()).wrapping_sub(len);
        (at, slice(blob, at, len))
    }

    /// The requantisers.
    pub(super) fn requants(self, blob: &[u8]) -> impl Iterator<Item = Requant> + '_ {
        self.requant_bytes(blob).1.chunks_exact(REQUANT_BYTES).map(|b| Requant {
            multiplier: le_u32(b, 0) as i32,
            shift: b.get(4).copied().unwrap_or(0),
        })
    }
}

impl Layout {
    /// The layers, first to last.
    pub(super) fn layers(&self) -> impl Iterator<Item = LayerLayout> + '_ {
        self.layers.iter().copied().take_while(|l| l.outputs != 0)
    }

    /// Checks the frame of a blob: all but what the numbers in it can do.
    pub(super) fn parse(blob: &[u8]) -> Result<Self, BlobError> {
        let have = blob.len();
        if have > BLOB_BYTES_MAX {
            return Err(BlobError::TooLarge(have));
        }
        let smallest = PAYLOAD + CRC_BYTES;
        if have < smallest {
            // A file of another kind is better called that.
            return match blob.get(..MAGIC.len()) {
                Some(magic) if *magic != MAGIC => Err(BlobError::Magic),
                _ => Err(BlobError::Truncated { need: smallest, have }),
            };
        }
        if *slice(blob, 0, MAGIC.len()) != MAGIC {
            return Err(BlobError::Magic);
        }
        let version = le_u16(blob, 8);
        if version != VERSION {
            return Err(BlobError::Version(version));
        }
        let need = le_u32(blob, 16) as usize;
        if need > have {
            return Err(BlobError::Truncated { need, have });
        }
        if need < have {
            return Err(BlobError::TrailingBytes(have.wrapping_sub(need)));
        }
        let body = have.wrapping_sub(CRC_BYTES);
        let (stored, computed) = (le_u32(blob, body), crc32c(0, slice(blob, 0, body)));
        if stored != computed {
            return Err(BlobError::Checksum { stored, computed });
        }
        let family = le_u16(blob, 10);
        let family = Family::from_wire(family).ok_or(BlobError::Family(family))?;
        let schema = le_u32(blob, 12);
        if schema != SCHEMA_HASH {
            return Err(BlobError::Schema(schema));
        }
        zeroes(blob, 26, 6)?;
        zeroes(blob, 70, 2)?;
        zeroes(blob, 104, 24)?;
        let layers = layers(blob, family)?;
        let end = layers.iter().fold(PAYLOAD, |end, l| end.saturating_add(l.len()));
        if end > body {
            return Err(BlobError::Truncated { need: end.saturating_add(CRC_BYTES), have });
        }
        if end < body {
            return Err(BlobError::TrailingBytes(body.wrapping_sub(end)));
        }
        for layer in layers.iter().filter(|l| l.outputs != 0) {
            let (at, padding) = layer.padding(blob);
            zeroes(blob, at, padding.len())?;
            let (at, bytes) = layer.requant_bytes(blob);
            for no in 0..bytes.len() / REQUANT_BYTES {
                zeroes(blob, at.wrapping_add(no.wrapping_mul(REQUANT_BYTES)).wrapping_add(5), 3)?;
            }
        }
        for feature in 0..FEATURES {
            zeroes(blob, HEADER_BYTES + feature * NORMALISER_BYTES + 5, 3)?;
        }
        Ok(Self { family, metadata: metadata(blob)?, crc: stored, layers })
    }
}

/// Reads the shape and checks it.
fn layers(blob: &[u8], family: Family) -> Result<[LayerLayout; LAYERS_MAX], BlobError> {
    let (features, count) = (byte(blob, 20), byte(blob, 21));
    if usize::from(features) != FEATURES {
        return Err(BlobError::Features(features));
    }
    let allowed = match family {
        Family::Linear => 1..=1,
        Family::Mlp => 2..=LAYERS_MAX as u8,
    };
    if !allowed.contains(&count) {
        return Err(BlobError::Layers(count));
    }
    let mut layers = [LayerLayout::default(); LAYERS_MAX];
    let mut inputs = features;
    let mut offset = PAYLOAD;
    let widths = slice(blob, 22, LAYERS_MAX).iter().copied();
    for (no, (layer, outputs)) in (0..LAYERS_MAX as u8).zip(layers.iter_mut().zip(widths)) {
        let good = match no {
            _ if no >= count => outputs == 0,
            _ if no.wrapping_add(1) == count => outputs == 1,
            _ => (1..=WIDTH_MAX as u8).contains(&outputs),
        };
        if !good {
            return Err(BlobError::Width { layer: no, outputs });
        }
        *layer = LayerLayout { inputs, outputs, offset: offset as u32 };
        offset = offset.saturating_add(layer.len());
        inputs = outputs;
    }
    Ok(layers)
}

/// Reads the notes of the trainer.
fn metadata(blob: &[u8]) -> Result<Metadata, BlobError> {
    let mut name = [0; NAME_BYTES];
    for (to, from) in name.iter_mut().zip(slice(blob, NAME, NAME_BYTES)) {
        *to = *from;
    }
    let used = name.split(|b| *b == 0).next().unwrap_or(&[]);
    if core::str::from_utf8(used).is_err() || name.iter().skip(used.len()).any(|b| *b != 0) {
        return Err(BlobError::Name);
    }
    Ok(Metadata {
        seed: le_u64(blob, 32),
        data_hash: le_u64(blob, 40),
        data_end_realtime_s: le_u64(blob, 48),
        samples: le_u32(blob, 56),
        base_permille: le_u16(blob, 60),
        ap_permille: le_u16(blob, 62),
        ap_ewma_permille: le_u16(blob, 64),
        auc_permille: le_u16(blob, 66),
        auc_ewma_permille: le_u16(blob, 68),
        name_bytes: name,
    })
}

/// Brings a feature to the range of int8: `round((feature - offset) * multiplier / 2^shift)`,
/// clamped to -127..=127.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Normaliser {
    /// Value of the feature that becomes zero.
    pub offset: i16,
    /// Multiplier.
    pub multiplier: u16,
    /// Shift, at most [`NORMALISER_SHIFT_MAX`].
    pub shift: u8,
}

/// Brings an accumulator to the range of the next layer: `round(acc * multiplier / 2^shift)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requant {
    /// Multiplier, not negative.
    pub multiplier: i32,
    /// Shift, at most [`REQUANT_SHIFT_MAX`].
    pub shift: u8,
}

/// The normalisers of a blob.
pub(super) fn normalisers(blob: &[u8]) -> impl Iterator<Item = Normaliser> + '_ {
    slice(blob, HEADER_BYTES, FEATURES * NORMALISER_BYTES).chunks_exact(NORMALISER_BYTES).map(|b| {
        Normaliser {
            offset: le_u16(b, 0) as i16,
            multiplier: le_u16(b, 2),
            shift: b.get(4).copied().unwrap_or(0),
        }
    })
}

/// A layer to be written.
#[derive(Clone, Copy, Debug)]
pub struct LayerSpec<'a> {
    /// Outputs x inputs weights, output by output.
    pub weights: &'a [i8],
    /// A bias an output.
    pub biases: &'a [i32],
    /// A requantiser an output.
    pub requants: &'a [Requant],
}

/// A model to be written.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Family.
    pub family: Family,
    /// Notes.
    pub metadata: Metadata,
    /// A normaliser a feature.
    pub normalisers: &'a [Normaliser; FEATURES],
    /// Layers, first to last.
    pub layers: &'a [LayerSpec<'a>],
}

/// Why a model cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// A layer's weights, biases and requantisers do not fit together or to the layer before.
    Shape,
    /// The buffer is too small.
    Room,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "the shapes of the layers do not fit together",
            Self::Room => "the buffer is too small for the model",
        })
    }
}

impl core::error::Error for EncodeError {}

/// Writes a model into `out` and returns its length. What it writes is not verified: that is
/// [`super::Model::parse`]'s part, for every blob alike.
pub fn encode(spec: &Spec<'_>, out: &mut [u8]) -> Result<usize, EncodeError> {
    if spec.layers.is_empty() || spec.layers.len() > LAYERS_MAX {
        return Err(EncodeError::Shape);
    }
    let mut inputs = FEATURES;
    let mut widths = [0u8; LAYERS_MAX];
    for (layer, width) in spec.layers.iter().zip(widths.iter_mut()) {
        let outputs = layer.biases.len();
        *width = u8::try_from(outputs).map_err(|_| EncodeError::Shape)?;
        if layer.requants.len() != outputs
            || Some(layer.weights.len()) != inputs.checked_mul(outputs)
        {
            return Err(EncodeError::Shape);
        }
        inputs = outputs;
    }
    let m = &spec.metadata;
    let mut w = Writer { out, at: 0 };
    w.put(&MAGIC)?;
    w.put(&VERSION.to_le_bytes())?;
    w.put(&(spec.family as u16).to_le_bytes())?;
    w.put(&SCHEMA_HASH.to_le_bytes())?;
    w.put(&[0; 4])?;
    w.put(&[FEATURES as u8, spec.layers.len() as u8])?;
    w.put(&widths)?;
    w.put(&[0; 6])?;
    w.put(&m.seed.to_le_bytes())?;
    w.put(&m.data_hash.to_le_bytes())?;
    w.put(&m.data_end_realtime_s.to_le_bytes())?;
    w.put(&m.samples.to_le_bytes())?;
    for n in
        [m.base_permille, m.ap_permille, m.ap_ewma_permille, m.auc_permille, m.auc_ewma_permille, 0]
    {
        w.put(&n.to_le_bytes())?;
    }
    w.put(&m.name_bytes)?;
    w.put(&[0; 24])?;
    for n in spec.normalisers {
        w.put(&n.offset.to_le_bytes())?;
        w.put(&n.multiplier.to_le_bytes())?;
        w.put(&[n.shift, 0, 0, 0])?;
    }
    for layer in spec.layers {
        for weight in layer.weights {
            w.put(&weight.to_le_bytes())?;
        }
        let padding = pad(w.at).wrapping_sub(w.at);
        w.put([0; 3].get(..padding).unwrap_or(&[]))?;
        for bias in layer.biases {
            w.put(&bias.to_le_bytes())?;
        }
        for r in layer.requants {
            w.put(&r.multiplier.to_le_bytes())?;
            w.put(&[r.shift, 0, 0, 0])?;
        }
    }
    let body = w.at;
    let len = body.checked_add(CRC_BYTES).ok_or(EncodeError::Room)?;
    let len_field = u32::try_from(len).map_err(|_| EncodeError::Room)?;
    w.at = 16;
    w.put(&len_field.to_le_bytes())?;
    let crc = crc32c(0, w.out.get(..body).ok_or(EncodeError::Room)?);
    w.at = body;
    w.put(&crc.to_le_bytes())?;
    Ok(len)
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let end = self.at.checked_add(bytes.len()).ok_or(EncodeError::Room)?;
        let place = self.out.get_mut(self.at..end).ok_or(EncodeError::Room)?;
        for (to, from) in place.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.at = end;
        Ok(())
    }
}

/// The next multiple of 4.
const fn pad(len: usize) -> usize {
    len.wrapping_add(3) & !3
}

/// The bytes from `at`, empty if they are not all there.
fn slice(blob: &[u8], at: usize, len: usize) -> &[u8] {
    blob.get(at..at.saturating_add(len)).unwrap_or(&[])
}

fn zeroes(blob: &[u8], at: usize, len: usize) -> Result<(), BlobError> {
    let mut bytes = (at..at.saturating_add(len)).zip(slice(blob, at, len));
    match bytes.find(|(_, byte)| **byte != 0) {
        Some((at, _)) => Err(BlobError::Reserved(at)),
        None => Ok(()),
    }
}

fn byte(blob: &[u8], at: usize) -> u8 {
    blob.get(at).copied().unwrap_or(0)
}

fn le_u16(blob: &[u8], at: usize) -> u16 {
    slice(blob, at, 2).try_into().map_or(0, u16::from_le_bytes)
}

fn le_u32(blob: &[u8], at: usize) -> u32 {
    slice(blob, at, 4).try_into().map_or(0, u32::from_le_bytes)
}

fn le_u64(blob: &[u8], at: usize) -> u64 {
    slice(blob, at, 8).try_into().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_characters() {
        assert_eq!(Metadata::named("a\0b").name(), "ab");
        let long = "€".repeat(20);
        assert_eq!(Metadata::named(&long).name(), "€".repeat(10));
        assert_eq!(Metadata::named(&"x".repeat(40)).name(), "x".repeat(32));
    }
}
