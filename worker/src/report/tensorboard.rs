//! Loss curves as TensorBoard event files: TFRecords of protobuf Events, each with masked CRC-32C sums.
//!
//! The wall time of every event is 0: a report is a function of its inputs. TensorBoard draws over steps.

use super::StepPoint;

/// The record that opens a file.
const VERSION: &str = "brain.Event:2";
/// TFRecord's mask, which keeps sums of data that holds sums apart.
const MASK: u32 = 0xa282_ead8;

/// tensorflow.Event, as far as scalars need it.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The file of one phase's curve; TensorBoard wants "tfevents" in its name.
pub fn event_file(steps: &[StepPoint]) -> Vec<u8> {
    let events = steps.iter().flat_map(|point| step_event(point, Vec::new()));
    file_version().into_iter().chain(events).collect()
}

/// The record that a file begins with.
pub fn file_version() -> Vec<u8> {
    record(&Event { file_version: Some(VERSION.to_owned()), ..Event::default() })
}

/// The record of a step, with more scalars by tag than the curve has.
pub fn step_event(point: &StepPoint, more: Vec<(String, f64)>) -> Vec<u8> {
    let StepPoint { step, loss, terms, learning_rate, gradient_norm } = point;
    let scalar = |tag: String, value: f64| Value { tag, simple_value: Some(value as f32) };
    let mut value = vec![
        scalar("loss".to_owned(), *loss),
        scalar("learning_rate".to_owned(), *learning_rate),
        scalar("gradient_norm".to_owned(), *gradient_norm),
    ];
    value.extend(terms.iter().map(|(name, term)| scalar(format!("loss/{name}"), *term)));
    value.extend(more.into_iter().map(|(tag, value)| scalar(tag, value)));
    let step = i64::try_from(*step).unwrap_or(i64::MAX);
    record(&Event { step, summary: Some(Summary { value }), ..Event::default() })
}

/// Length, its sum, the event, its sum.
fn record(event: &Event) -> Vec<u8> {
    let data = prost::Message::encode_to_vec(event);
    let length = (data.len() as u64).to_le_bytes();
    let (of_length, of_data) = (masked(&length).to_le_bytes(), masked(&data).to_le_bytes());
    [&length[..], &of_length, &data, &of_data].concat()
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

/// CRC-32 with Castagnoli's polynomial, bit by bit: the files are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_sum_is_castagnolis() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_curve_can_be_read_back() {
        let point = |step| StepPoint {
            step,
            loss: 1.0 / step as f64,
            terms: vec![("kl".to_owned(), 0.5)],
            learning_rate: 1e-3,
            gradient_norm: 2.0,
        };
        let file = event_file(&[point(1), point(2)]);
        let mut rest = &file[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let size = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(after[..4], masked(length).to_le_bytes());
            let data = &after[4..4 + size];
            assert_eq!(after[4 + size..8 + size], masked(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            rest = &after[8 + size..];
        }
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let scalars = |event: &Event| {
            let values = event.summary.clone().unwrap().value.into_iter();
            values.map(|value| (value.tag, value.simple_value.unwrap())).collect::<Vec<_>>()
        };
        assert_eq!((events.len(), events[2].step), (3, 2));
        let expected = [("loss", 0.5), ("learning_rate", 1e-3), ("gradient_norm", 2.0), ("loss/kl", 0.5)];
        assert_eq!(scalars(&events[2]), expected.map(|(tag, value)| (tag.to_owned(), value)));
    }
}
