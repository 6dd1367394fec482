//! Columns of TSV and CSV, and Python's lists of strings.

use memchr::{memchr, memchr2};
use std::borrow::Cow;

/// Where a record of CSV ends, if the bytes hold its end: the offset of its line feed, or of the end of the bytes
/// where they are the last (`at_end`). Columns in quotes may hold line feeds.
pub fn csv_record_end(bytes: &[u8], delimiter: u8, at_end: bool) -> Option<usize> {
    let mut at = 0;
    loop {
        if bytes.get(at) == Some(&b'"') {
            at = closing_quote(bytes, at + 1, at_end)? + 1;
        }
        match memchr2(delimiter, b'\n', bytes.get(at..)?) {
            Some(offset) if bytes[at + offset] == b'\n' => return Some(at + offset),
            Some(offset) => at += offset + 1,
            None => return at_end.then_some(bytes.len()),
        }
    }
}

/// The quote that closes a column; none where the bytes end before it.
fn closing_quote(bytes: &[u8], mut at: usize, at_end: bool) -> Option<usize> {
    loop {
        at += memchr(b'"', bytes.get(at..)?)?;
        match bytes.get(at + 1) {
            Some(b'"') => at += 2,
            None if !at_end => return None,
            _ => return Some(at),
        }
    }
}

/// The columns of a record as Python's csv module reads them, which DPR uses: a column that begins with a quote ends
/// with one, a doubled quote in it is one; elsewhere quotes are text.
pub fn csv_fields(record: &str, delimiter: u8) -> Result<Vec<Cow<'_, str>>, String> {
    let (bytes, mut fields, mut at) = (record.as_bytes(), Vec::new(), 0);
    loop {
        let mut field = Cow::Borrowed("");
        if bytes.get(at) == Some(&b'"') {
            let close = closing_quote(bytes, at + 1, true).ok_or_else(|| {
                format!("column {} begins with a quote that nothing closes", fields.len() + 1)
            })?;
            let inside = &record[at + 1..close];
            field = if inside.contains("\"\"") { inside.replace("\"\"", "\"").into() } else { inside.into() };
            at = close + 1;
        }
        let end = memchr(delimiter, &bytes[at..]).map(|offset| at + offset);
        let rest = &record[at..end.unwrap_or(bytes.len())];
        field = if field.is_empty() {
            rest.into()
        } else if rest.is_empty() {
            field
        } else {
            (field + rest).into_owned().into()
        };
        fields.push(field);
        match end {
            Some(end) => at = end + 1,
            None => return Ok(fields),
        }
    }
}

/// Exactly `N` columns with tabs between.
pub fn tsv_columns<'a, const N: usize>(record: &'a str, names: &str) -> Result<[&'a str; N], String> {
    let mut columns = [""; N];
    let mut found = 0;
    for column in record.split('\t') {
        if found < N {
            columns[found] = column;
        }
        found += 1;
    }
    if found == N { Ok(columns) } else { Err(wrong_columns(found, N, names)) }
}

/// What to say of a record with another number of columns.
pub fn wrong_columns(found: usize, wanted: usize, names: &str) -> String {
    let plural = if found == 1 { "" } else { "s" };
    format!("{found} column{plural} instead of {wanted}: {names} are expected, with tabs between")
}

/// A list of strings as Python writes it: `['one', "it's"]`.
pub fn python_list(text: &str) -> Result<Vec<String>, String> {
    let mut letters = text.trim().chars().peekable();
    let wrong = |what: &str| format!("the answers are no list of strings as Python writes it: {what}");
    if letters.next() != Some('[') {
        return Err(wrong("it does not begin with ["));
    }
    let mut strings = Vec::new();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        match letters.next() {
            Some(']') => break,
            Some(quote @ ('\'' | '"')) => strings.push(python_string(&mut letters, quote).map_err(wrong)?),
            Some(_) => return Err(wrong("an element is not in quotes")),
            None => return Err(wrong("it does not end with ]")),
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        match letters.next() {
            Some(',') => {}
            Some(']') => break,
            _ => return Err(wrong("a comma is missing")),
        }
    }
    if letters.any(|letter| !letter.is_whitespace()) {
        return Err(wrong("something follows the ]"));
    }
    Ok(strings)
}

fn python_string(
    letters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    quote: char,
) -> Result<String, &'static str> {
    let mut text = String::new();
    loop {
        match letters.next().ok_or("a quote is not closed")? {
            letter if letter == quote => return Ok(text),
            '\\' => escape(letters, &mut text)?,
            letter => text.push(letter),
        }
    }
}

/// Python keeps the backslash of an escape that it does not know.
fn escape(
    letters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    text: &mut String,
) -> Result<(), &'static str> {
    let letter = letters.next().ok_or("a quote is not closed")?;
    let digits = match letter {
        'n' => return push(text, '\n'),
        't' => return push(text, '\t'),
        'r' => return push(text, '\r'),
        '\\' | '\'' | '"' => return push(text, letter),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        other => {
            text.push('\\');
            return push(text, other);
        }
    };
    let mut code = 0u32;
    for _ in 0..digits {
        let digit = letters.next().and_then(|letter| letter.to_digit(16)).ok_or("an escape is cut short")?;
        code = code.checked_mul(16).ok_or("an escape is no character")? + digit;
    }
    push(text, char::from_u32(code).ok_or("an escape is no character")?)
}

fn push(text: &mut String, letter: char) -> Result<(), &'static str> {
    text.push(letter);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_read_as_python_reads_it() {
        let check = |record: &str, expected: &[&str]| {
            let end = csv_record_end(format!("{record}\nnext").as_bytes(), b'\t', false);
            assert_eq!(end, Some(record.len()), "{record:?}");
            assert_eq!(csv_record_end(record.as_bytes(), b'\t', true), Some(record.len()), "{record:?}");
            assert_eq!(csv_fields(record, b'\t').unwrap(), expected, "{record:?}");
        };
        check("1\ttext\ttitle", &["1", "text", "title"]);
        check("1\t\"a \"\"b\"\" c\"\tt", &["1", "a \"b\" c", "t"]);
        check("1\t\"a\tb\nc\"\tt", &["1", "a\tb\nc", "t"]);
        check("a \"b\" c\t['x']", &["a \"b\" c", "['x']"]);
        check("\"Float\" means?\t[]", &["Float means?", "[]"]);
        check("\t\"\"\t", &["", "", ""]);
        check("\"\"\"\"\tx", &["\"", "x"]);
        assert_eq!(csv_record_end(b"1\t\"a\nb\nc", b'\t', false), None);
        assert_eq!(csv_record_end(b"1\t\"a\nb\nc", b'\t', true), None);
        assert_eq!(csv_record_end(b"1\t\"a\"", b'\t', false), None);
        assert!(csv_fields("1\t\"a", b'\t').unwrap_err().contains("column 2"));
    }

    #[test]
    fn python_lists_are_read_as_python_reads_them() {
        let check = |text: &str, expected: Result<&[&str], &str>| match (python_list(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
            (found, expected) => panic!("{text}: {found:?} instead of {expected:?}"),
        };
        check("[]", Ok(&[]));
        check(" ['a', \"it's\" ,'b',] ", Ok(&["a", "it's", "b"]));
        check(
            r"['it\'s', 'a\\b', 'New\s?York', '\u00e9\x41\U0001F600']",
            Ok(&["it's", "a\\b", "New\\s?York", "éA😀"]),
        );
        check("'a'", Err("does not begin with ["));
        check("['a'", Err("a comma is missing"));
        check("['a", Err("not closed"));
        check("['a' 'b']", Err("comma"));
        check("[1]", Err("not in quotes"));
        check("['a'] x", Err("follows"));
        check(r"['\uD800']", Err("no character"));
        check(r"['\UFFFFFFFF']", Err("no character"));
    }
}
