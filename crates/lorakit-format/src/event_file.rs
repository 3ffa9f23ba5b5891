//! TensorBoard's event files: protocol buffers of `tensorflow.Event`, framed as TFRecords with masked CRC-32C sums.
//!
//! A record is its length (8 bytes), the sum of the length, the data, and the sum of the data, all little-endian
//! (<https://www.tensorflow.org/tutorials/load_data/tfrecord>). Of the messages only what scalars need is written.

/// A value of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalar<'a> {
    /// The curve's name; TensorBoard groups those with a common part before `/`.
    pub tag: &'a str,
    /// The step.
    pub step: u64,
    /// The value.
    pub value: f32,
}

/// The record that a file starts with. `wall_time` is in seconds since 1970.
pub fn version_record(wall_time: f64) -> Vec<u8> {
    let mut event = wall_time_field(wall_time);
    put_bytes(3, b"brain.Event:2", &mut event);
    record(&event)
}

/// The record of a scalar.
pub fn scalar_record(scalar: Scalar, wall_time: f64) -> Vec<u8> {
    let mut value = Vec::new();
    put_bytes(1, scalar.tag.as_bytes(), &mut value);
    put_key(2, WIRE_32_BITS, &mut value);
    value.extend(scalar.value.to_le_bytes());
    let mut summary = Vec::new();
    put_bytes(1, &value, &mut summary);
    let mut event = wall_time_field(wall_time);
    put_key(2, WIRE_VARINT, &mut event);
    put_varint(scalar.step, &mut event);
    put_bytes(5, &summary, &mut event);
    record(&event)
}

/// The kinds of values in protocol buffers.
const WIRE_VARINT: u64 = 0;
const WIRE_64_BITS: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_32_BITS: u64 = 5;

fn wall_time_field(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    put_key(1, WIRE_64_BITS, &mut event);
    event.extend(wall_time.to_le_bytes());
    event
}

fn put_key(field: u64, kind: u64, out: &mut Vec<u8>) {
    put_varint((field << 3) | kind, out);
}

fn put_bytes(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
    put_key(field, WIRE_BYTES, out);
    put_varint(bytes.len() as u64, out);
    out.extend(bytes);
}

/// Seven bits per byte, the lowest first; the highest bit says that more follow.
fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The data as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let [of_length, of_data] = [&length, data].map(|bytes| masked(crc32c(bytes)).to_le_bytes());
    [&length, &of_length[..], data, &of_data].concat()
}

/// TFRecord stores sums so, because a sum over data that holds sums is weak.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, bit by bit: records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let of_byte = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 })
    };
    !bytes.iter().fold(!0, of_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_record_holds_the_event_between_its_sums() {
        let record = scalar_record(Scalar { tag: "loss/a", step: 300, value: 1.5 }, 2.0);
        let event = &record[12..record.len() - 4];
        assert_eq!(record[..8], (event.len() as u64).to_le_bytes());
        assert_eq!(record[8..12], masked(crc32c(&record[..8])).to_le_bytes());
        assert_eq!(record[record.len() - 4..], masked(crc32c(event)).to_le_bytes());
        let mut expected = vec![0x09];
        expected.extend(2f64.to_le_bytes());
        // Step 300 as a varint; a summary of one value of 13 bytes: its tag and the number.
        expected.extend([0x10, 0xac, 0x02, 0x2a, 15, 0x0a, 13, 0x0a, 6]);
        expected.extend(b"loss/a");
        expected.push(0x15);
        expected.extend(1.5f32.to_le_bytes());
        assert_eq!(event, expected);
    }
}
