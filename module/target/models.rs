// SPDX-License-Identifier: GPL-2.0-only

//! The models of a device: the one in use, the one before, and the blob that is being uploaded.

use kernel::prelude::*;
use presnap_abi::dm::Text;
use presnap_abi::memory::{zeroed_array, NoIo};
use presnap_engine::features::{FeatureVector, FEATURES};
use presnap_engine::model::{Model, BLOB_BYTES_MAX};

/// Feature vectors evaluated for a test of bit-exactness.
pub(crate) const VECTORS: usize = 1024;
/// Bytes of a feature vector.
pub(crate) const VECTOR_BYTES: usize = FEATURES * 2;

/// See the module. Behind the device's mutex, so a commit waits for scoring to end and the other
/// way round. The worker may be on the way of I/O then: what is allocated in here must not wait for I/O.
pub(crate) struct Models {
    current: Option<Model<KVVec<u8>>>,
    previous: Option<Model<KVVec<u8>>>,
    upload: KVVec<u8>,
    uploaded: usize,
    generation: u64,
    /// Words of the last refusal.
    refusal: [u8; 160],
    refusal_len: usize,
    answers: KVVec<u8>,
    answered: usize,
}

impl Models {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            current: None,
            previous: None,
            upload: KVVec::new(),
            uploaded: 0,
            generation: 0,
            refusal: [0; 160],
            refusal_len: 0,
            answers: KVVec::new(),
            answered: 0,
        })
    }

    /// The model in use.
    pub(crate) fn model(&self) -> Option<&Model<KVVec<u8>>> {
        self.current.as_ref()
    }

    fn refuse(&mut self, why: impl core::fmt::Display) -> Error {
        use core::fmt::Write;
        let mut text = Text::new(&mut self.refusal);
        let _ = write!(text, "{why}");
        self.refusal_len = text.len();
        pr_warn!("model refused: {}\n", format_args!("{why}"));
        EINVAL
    }

    /// Takes a piece of a blob. A write at offset 0 begins a new one.
    pub(crate) fn upload(&mut self, offset: u64, data: &[u8]) -> Result {
        let offset = usize::try_from(offset).map_err(|_| EFBIG)?;
        let end = offset.checked_add(data.len()).filter(|&end| end <= BLOB_BYTES_MAX);
        let Some(end) = end else {
            return Err(self.refuse("the blob is larger than 65536 bytes"));
        };
        if offset == 0 {
            self.uploaded = 0;
        }
        if offset != self.uploaded {
            return Err(self.refuse("the blob was not written from front to back"));
        }
        if self.upload.is_empty() {
            let _no_io = NoIo::enter();
            self.upload = zeroed_array(BLOB_BYTES_MAX)?;
        }
        let place = self.upload.get_mut(offset..end).ok_or(EINVAL)?;
        place.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        self.uploaded = end;
        Ok(())
    }

    /// Checks what was uploaded and puts it to use; on failure the model in use stays.
    pub(crate) fn commit(&mut self) -> Result {
        if self.uploaded == 0 {
            return Err(self.refuse("nothing was uploaded"));
        }
        let _no_io = NoIo::enter();
        let mut blob = zeroed_array(self.uploaded)?;
        if let Some(data) = self.upload.get(..self.uploaded) {
            blob.copy_from_slice(data);
        }
        self.uploaded = 0;
        match Model::parse(blob) {
            Ok(model) => {
                self.previous = self.current.replace(model);
                self.generation = self.generation.saturating_add(1);
                self.refusal_len = 0;
                Ok(())
            }
            Err(e) => Err(self.refuse(e)),
        }
    }

    /// Goes back to the model before.
    pub(crate) fn rollback(&mut self) -> Result {
        let Some(previous) = self.previous.take() else {
            return Err(self.refuse("there is no model to go back to"));
        };
        self.current = Some(previous);
        self.generation = self.generation.saturating_add(1);
        Ok(())
    }

    /// `<family> schema=<hex> crc=<hex> generation=<n>`, or `none`.
    pub(crate) fn write_state(&self, out: &mut Text<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        match &self.current {
            None => write!(out, "none"),
            Some(model) => write!(
                out,
                "{} schema={:08x} crc={:08x} generation={}",
                model.family().name(),
                presnap_engine::features::SCHEMA_HASH,
                model.checksum(),
                self.generation
            ),
        }
    }

    /// Words of the last refusal, `-` if the last upload was accepted.
    pub(crate) fn write_refusal(&self, out: &mut Text<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        let words = self.refusal.get(..self.refusal_len).unwrap_or(&[]);
        match core::str::from_utf8(words) {
            Ok(words) if !words.is_empty() => write!(out, "{words}"),
            _ => write!(out, "-"),
        }
    }

    /// Evaluates feature vectors by the model in use; [`Models::answers`] has the results.
    ///
    /// Takes whole vectors only (sysfs cuts writes into pages, which are no multiple of them), and
    /// returns how many bytes that were.
    pub(crate) fn evaluate(&mut self, offset: u64, data: &[u8]) -> Result<usize> {
        if offset % VECTOR_BYTES as u64 != 0 || data.len() < VECTOR_BYTES {
            return Err(EINVAL);
        }
        let Some(model) = self.current.as_ref() else { return Err(ENODATA) };
        if self.answers.is_empty() {
            let _no_io = NoIo::enter();
            self.answers = zeroed_array(VECTORS * 2)?;
        }
        let first = usize::try_from(offset / VECTOR_BYTES as u64).map_err(|_| EFBIG)?;
        let places = self.answers.chunks_exact_mut(2).skip(first);
        let mut done = 0usize;
        for (bytes, place) in data.chunks_exact(VECTOR_BYTES).zip(places) {
            let mut features = FeatureVector([0; FEATURES]);
            for (value, pair) in features.0.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = i16::from_le_bytes(pair.try_into().unwrap_or([0; 2]));
            }
            place.copy_from_slice(&model.infer(&features).0.to_le_bytes());
            done = done.saturating_add(1);
        }
        if done == 0 {
            return Err(EFBIG);
        }
        self.answered = first.saturating_add(done);
        Ok(done.saturating_mul(VECTOR_BYTES))
    }

    /// The results of the last evaluation, from a byte offset on.
    pub(crate) fn answers(&self, offset: u64, out: &mut [u8]) -> usize {
        let all = self.answers.get(..self.answered.saturating_mul(2)).unwrap_or(&[]);
        let rest = usize::try_from(offset).ok().and_then(|o| all.get(o..)).unwrap_or(&[]);
        let mut n = 0;
        for (to, from) in out.iter_mut().zip(rest) {
            *to = *from;
            n = usize::saturating_add(n, 1);
        }
        n
    }
}
