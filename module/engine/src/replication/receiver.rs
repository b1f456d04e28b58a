// SPDX-License-Identifier: GPL-2.0-only

//! The receiving end of a stream: checks every byte and says what to do.

use super::{
    advance, data_bytes, RecordHeader, ResumePoint, StreamError, StreamHeader, Tag,
    RECORD_HEADER_BYTES, STREAM_HEADER_BYTES,
};
use crate::crc32c::crc32c;

/// What the receiver needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// So many bytes.
    Bytes(usize),
    /// Nothing more: the end of the input.
    End,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The bytes that were needed arrived.
    Bytes(&'a [u8]),
    /// The input is over.
    End,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Check the header with [`super::Replica::accept`], and make [`super::Replica::begun`] durable, before going on.
    Begin(StreamHeader),
    /// Nothing but to bring what is needed next.
    Continue,
    /// Write the bytes just handed in. All of them are checked.
    Write {
        /// The first block.
        start_block: u64,
        /// The number of blocks.
        blocks: u32,
    },
    /// Make blocks zero.
    Zero {
        /// The first block.
        start_block: u64,
        /// The number of blocks.
        blocks: u32,
        /// They were discarded on the origin, and may be here, if they then read as zero.
        discarded: bool,
    },
    /// All is there: flush, then make [`super::Replica::completed`] durable. Only the end of the input may follow.
    Complete,
    /// The input is over, as it should be.
    Done,
}

/// Where the receiver is.
#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Record,
    Data { record: RecordHeader, chain: u32 },
    Complete,
    Done,
    Failed,
}

/// The state machine of the receiving end.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    state: State,
    header: Option<StreamHeader>,
    point: ResumePoint,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    /// Expects a stream from its header on.
    pub const fn new() -> Self {
        Self { state: State::Header, header: None, point: ResumePoint::START }
    }

    /// Returns what is needed next.
    pub const fn need(&self) -> Need {
        match self.state {
            State::Header => Need::Bytes(STREAM_HEADER_BYTES),
            State::Record => Need::Bytes(RECORD_HEADER_BYTES),
            State::Data { record, .. } => Need::Bytes(data_bytes(record.blocks)),
            State::Complete | State::Done | State::Failed => Need::End,
        }
    }

    /// Returns the header, once it has been read.
    pub const fn header(&self) -> Option<&StreamHeader> {
        self.header.as_ref()
    }

    /// Returns where the stream can be resumed once all actions so far are durable.
    pub const fn position(&self) -> ResumePoint {
        self.point
    }

    /// Takes an event. After an error nothing more is accepted.
    pub fn step(&mut self, event: Event<'_>) -> Result<Action, StreamError> {
        let result = self.next(event);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    fn next(&mut self, event: Event<'_>) -> Result<Action, StreamError> {
        let bytes = match (event, self.state) {
            (_, State::Done | State::Failed) => return Err(StreamError::Finished),
            (Event::End, State::Complete) => {
                self.state = State::Done;
                return Ok(Action::Done);
            }
            (Event::Bytes(_), State::Complete) => return Err(StreamError::Trailing),
            (Event::End, _) => return Err(StreamError::Truncated),
            (Event::Bytes(bytes), _) => bytes,
        };
        if self.need() != Need::Bytes(bytes.len()) {
            return Err(StreamError::Length);
        }
        match self.state {
            State::Header => {
                let header = StreamHeader::decode(bytes)?;
                self.point = ResumePoint { chain: header.initial_chain(), ..header.start };
                self.header = Some(header);
                self.state = State::Record;
                Ok(Action::Begin(header))
            }
            State::Record => self.record(bytes),
            State::Data { record, chain } => {
                let start_block = record.start_block;
                if crc32c(0, bytes) != record.data_crc {
                    return Err(StreamError::DataChecksum { start_block });
                }
                self.take(&record, chain)?;
                Ok(Action::Write { start_block, blocks: record.blocks })
            }
            State::Complete | State::Done | State::Failed => Err(StreamError::Finished),
        }
    }

    fn record(&mut self, bytes: &[u8]) -> Result<Action, StreamError> {
        let bytes = bytes.first_chunk().ok_or(StreamError::Length)?;
        let (record, chain) = RecordHeader::decode(bytes)?;
        let expected = self.point.sequence;
        if record.sequence != expected {
            return Err(StreamError::Sequence { expected, found: record.sequence });
        }
        if record.encode(self.point.chain).1 != chain {
            return Err(StreamError::Chain);
        }
        let header = self.header.as_ref().ok_or(StreamError::Header)?;
        let RecordHeader { tag, start_block, blocks, .. } = record;
        if tag == Tag::End {
            let (announced, carried) = (header.total_blocks, self.point.blocks);
            if start_block != carried || carried != announced {
                return Err(StreamError::Total { announced, carried });
            }
            self.state = State::Complete;
            return Ok(Action::Complete);
        }
        if tag == Tag::Data {
            // Refused before its data are asked for.
            advance(&self.point, header, start_block, blocks)?;
            self.state = State::Data { record, chain };
            return Ok(Action::Continue);
        }
        self.take(&record, chain)?;
        Ok(Action::Zero { start_block, blocks, discarded: tag == Tag::Discard })
    }

    /// Counts a record as done.
    fn take(&mut self, record: &RecordHeader, chain: u32) -> Result<(), StreamError> {
        let header = self.header.as_ref().ok_or(StreamError::Header)?;
        let point = advance(&self.point, header, record.start_block, record.blocks)?;
        self.point = ResumePoint { chain, ..point };
        self.state = State::Record;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::header;
    use super::super::Encoder;
    use super::*;
    use crate::geometry::BLOCK_BYTES;

    /// The parts of a stream: header, records with their data, end.
    fn parts(header: &StreamHeader) -> Vec<Vec<u8>> {
        let mut bytes = [0; STREAM_HEADER_BYTES];
        header.encode(&mut bytes);
        let mut parts = vec![bytes.to_vec()];
        let mut encoder = Encoder::new(header);
        let from = encoder.position().next_block;
        for (start, blocks, what) in [(3, 2, 0), (10, 4, 1), (20, 1, 0), (30, 3, 2)] {
            if start < from {
                continue;
            }
            let mut part = Vec::new();
            if what == 0 {
                let data = vec![start as u8; blocks as usize * BLOCK_BYTES as usize];
                part.extend(encoder.data(start, blocks, crc32c(0, &data)).unwrap());
                part.extend(data);
            } else {
                part.extend(encoder.zero(start, blocks, what == 2).unwrap());
            }
            parts.push(part);
        }
        parts.push(encoder.end().unwrap().to_vec());
        parts
    }

    fn receive(mut stream: &[u8]) -> (Vec<Action>, Result<(), StreamError>, ResumePoint) {
        let mut receiver = Receiver::new();
        let mut actions = Vec::new();
        loop {
            let event = match receiver.need() {
                Need::Bytes(n) if stream.len() >= n => {
                    let (bytes, rest) = stream.split_at(n);
                    stream = rest;
                    Event::Bytes(bytes)
                }
                Need::End if !stream.is_empty() => Event::Bytes(stream),
                _ => Event::End,
            };
            match receiver.step(event) {
                Ok(Action::Done) => return (actions, Ok(()), receiver.position()),
                Ok(action) => actions.push(action),
                Err(e) => {
                    assert_eq!(receiver.step(Event::End), Err(StreamError::Finished));
                    return (actions, Err(e), receiver.position());
                }
            }
        }
    }

    #[test]
    fn whole_stream() {
        let (actions, result, point) = receive(&parts(&header()).concat());
        assert_eq!(result, Ok(()));
        let expected = [
            Action::Begin(header()),
            Action::Continue,
            Action::Write { start_block: 3, blocks: 2 },
            Action::Zero { start_block: 10, blocks: 4, discarded: false },
            Action::Continue,
            Action::Write { start_block: 20, blocks: 1 },
            Action::Zero { start_block: 30, blocks: 3, discarded: true },
            Action::Complete,
        ];
        assert_eq!(actions, expected);
        assert_eq!((point.sequence, point.blocks, point.next_block), (4, 10, 33));
    }

    #[test]
    fn truncation_and_trailing_bytes() {
        let stream = parts(&header()).concat();
        for cut in (0..stream.len()).step_by(13).chain([stream.len() - 1]) {
            assert_eq!(receive(&stream[..cut]).1, Err(StreamError::Truncated), "cut at {cut}");
        }
        assert_eq!(receive(&[&stream[..], &[0]].concat()).1, Err(StreamError::Trailing));
    }

    #[test]
    fn every_byte_counts() {
        let mut stream = parts(&header()).concat();
        for at in 0..stream.len() {
            // All of the headers, some of the data.
            if at % 61 != 0 && !(at < 400 || at > stream.len() - 300) {
                continue;
            }
            stream[at] ^= 0x08;
            assert!(receive(&stream).1.is_err(), "byte {at}");
            stream[at] ^= 0x08;
        }
    }

    #[test]
    fn reordered_repeated_missing_and_foreign_records() {
        let good = parts(&header());
        let sequence = |expected, found| Err(StreamError::Sequence { expected, found });
        let of = |order: &[usize]| {
            receive(&order.iter().map(|&i| good[i].clone()).collect::<Vec<_>>().concat()).1
        };
        assert_eq!(of(&[0, 1, 2, 3, 4, 5]), Ok(()));
        assert_eq!(of(&[0, 2, 1, 3, 4, 5]), sequence(0, 1));
        assert_eq!(of(&[0, 1, 1, 2, 3, 4, 5]), sequence(1, 0));
        assert_eq!(of(&[0, 1, 3, 4, 5]), sequence(1, 2));
        assert_eq!(of(&[0, 1, 2, 3, 5]), sequence(3, 4));
        let other = parts(&StreamHeader { op_last: 201, ..header() });
        for i in 1..good.len() {
            let mut mixed = good.clone();
            mixed[i] = other[i].clone();
            assert_eq!(receive(&mixed.concat()).1, Err(StreamError::Chain));
        }
    }

    #[test]
    fn resumed_anywhere() {
        let whole = receive(&parts(&header()).concat());
        let stream = parts(&header()).concat();
        for cut in (STREAM_HEADER_BYTES..stream.len()).step_by(500) {
            let (mut actions, _, point) = receive(&stream[..cut]);
            if point.sequence == 0 {
                continue;
            }
            let rest = parts(&StreamHeader { start: point, ..header() });
            let (more, result, end) = receive(&rest.concat());
            assert_eq!((result, end), (Ok(()), whole.2));
            if actions.last() == Some(&Action::Continue) {
                actions.pop();
            }
            actions.extend(&more[1..]);
            assert_eq!(actions, whole.0, "cut at {cut}");
        }
    }

    #[test]
    fn bytes_as_needed() {
        let mut receiver = Receiver::default();
        assert_eq!(receiver.need(), Need::Bytes(STREAM_HEADER_BYTES));
        assert_eq!(receiver.step(Event::Bytes(&[0; 5])), Err(StreamError::Length));
        assert_eq!(receiver.need(), Need::End);
        assert_eq!(receiver.step(Event::Bytes(&[])), Err(StreamError::Finished));
    }
}
