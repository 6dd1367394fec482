//! The texts of an order as token ids.

use super::TextRow;
use crate::tasks::input::model_folder;
use crate::tasks::{TaskError, Workbench};
use crate::text::Tokenizer;
use retort_common::task::{OrderTokens, Table, TextInput};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Token ids of the texts that are needed, in a scratch file.
pub(super) struct TokenStore {
    file: File,
    path: PathBuf,
    places: BTreeMap<TextRow, (u64, u32)>,
}

impl TokenStore {
    /// Gathers them from the tables, shard by shard.
    pub fn build(
        bench: &Workbench<'_>,
        tokens: &OrderTokens,
        (queries, passages, sentences): (&Table, &Table, Option<&Table>),
        needed: BTreeSet<TextRow>,
    ) -> Result<Self, TaskError> {
        let folder = model_folder(bench, &tokens.tokenizer)?;
        let tokenizer = Tokenizer::open(&folder, usize::MAX).map_err(TaskError::input)?;
        let path = bench.scratch("tokens");
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let file = file.map_err(Workbench::scratch_error(&path))?;
        let mut writer = BufWriter::new(file);
        let (mut places, mut offset) = (BTreeMap::new(), 0u64);
        let asked = [(Some(queries), TextRow::Query as fn(u64) -> TextRow), (sentences, TextRow::Sentence)];
        let asked = asked.into_iter().filter_map(|(table, kind)| Some((table?, kind)));
        let total =
            u64::from(passages.shards) + asked.clone().map(|(table, _)| u64::from(table.shards)).sum::<u64>();
        let mut done = 0;
        let mut add = |rows: Vec<(TextRow, String)>, input: &TextInput| -> Result<(), TaskError> {
            let rows: Vec<_> = rows.into_iter().filter(|(row, _)| needed.contains(row)).collect();
            let texts: Vec<_> = rows.iter().map(|(_, text)| format!("{}{text}", input.prefix)).collect();
            let ids = tokenizer.encode_all(&texts, input.max_tokens as usize, bench.threads);
            for ((row, _), ids) in rows.iter().zip(ids.map_err(TaskError::input)?) {
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                writer.write_all(&bytes).map_err(Workbench::scratch_error(&path))?;
                places.insert(*row, (offset, ids.len() as u32));
                offset += bytes.len() as u64;
            }
            Ok(())
        };
        for shard in 0..passages.shards {
            bench.go_on()?;
            let rows = bench.passages(passages, shard)?;
            let texts = (rows.first_row..).zip(0..rows.ids.len());
            add(
                texts.map(|(row, i)| (TextRow::Passage(row), rows.model_text(i))).collect(),
                &tokens.passage,
            )?;
            done += 1;
            bench.progress.progress(done, total, "tokens");
        }
        for (table, kind) in asked {
            for shard in 0..table.shards {
                bench.go_on()?;
                let rows = bench.queries(table, shard)?;
                let texts = (rows.first_row..).zip(rows.texts);
                add(texts.map(|(row, text)| (kind(row), text)).collect(), &tokens.query)?;
                done += 1;
                bench.progress.progress(done, total, "tokens");
            }
        }
        let file = writer
            .into_inner()
            .map_err(|error| error.into_error())
            .map_err(Workbench::scratch_error(&path))?;
        Ok(Self { file, path, places })
    }

    /// The token ids of a text that was gathered.
    pub fn get(&self, row: TextRow) -> Result<Vec<u32>, TaskError> {
        let (offset, length) = self.places.get(&row).expect("every text of the order was gathered");
        let mut bytes = vec![0; *length as usize * 4];
        self.file.read_exact_at(&mut bytes, *offset).map_err(Workbench::scratch_error(&self.path))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk)).collect())
    }
}
