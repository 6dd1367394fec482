//! Texts to vectors through an encoder: tokenising beside computing, in batches cut by a budget of tokens.

use std::sync::mpsc::sync_channel;

use crate::matrix::Matrix;
use crate::model::{Batch, Stack, Tower, TowerError};
use crate::text::{TextError, TokenBatch, Tokenizer, plan_batches};

/// Texts that are tokenised, sorted by length and cut into batches together. A vector's last bits may depend on its batch,
/// hence a constant; it holds so many batches that few of them are ragged.
const WINDOW: usize = 4096;

/// Windows that are tokenised ahead of the computation.
const AHEAD: usize = 1;

/// Why texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingError {
    /// The tokeniser failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The tower failed.
    #[error(transparent)]
    Tower(#[from] TowerError),
}

/// What turns texts into vectors.
#[derive(Clone, Copy, Debug)]
pub struct TextEncoder<'a> {
    /// Text to tokens.
    pub tokenizer: &'a Tokenizer,
    /// Tokens to vectors.
    pub tower: &'a Tower,
    /// What its checkpoint puts behind the tower.
    pub stack: &'a Stack,
    /// The id that pads batches.
    pub pad_token_id: u32,
    /// The most tokens of a text.
    pub max_tokens: usize,
    /// The most tokens of a batch, padding included.
    pub batch_tokens: usize,
}

impl TextEncoder<'_> {
    /// Vectors of `texts`, [texts, dim], not normalised. `threads` tokenise while others compute. `go_on` is told the number
    /// of texts done after each batch and may stop with an error.
    pub fn embed<T: AsRef<str> + Sync, E: From<EmbeddingError>>(
        &self,
        texts: &[T],
        threads: usize,
        mut go_on: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Matrix, E> {
        let mut vectors = Matrix::zeros(texts.len(), self.stack.dim(self.tower.config().dim()));
        let mut done = 0;
        std::thread::scope(|scope| -> Result<(), E> {
            let (sender, receiver) = sync_channel(AHEAD);
            scope.spawn(move || {
                for window in texts.chunks(WINDOW) {
                    // Nobody listens after an error of the computation.
                    if sender.send(self.tokenizer.encode_all(window, self.max_tokens, threads)).is_err() {
                        return;
                    }
                }
            });
            for (first, tokens) in (0..).step_by(WINDOW).zip(receiver) {
                let tokens = tokens.map_err(EmbeddingError::from)?;
                let lengths: Vec<_> = tokens.iter().map(|ids| ids.len() as u32).collect();
                for batch in plan_batches(&lengths, self.batch_tokens) {
                    let rows: Vec<_> = batch.iter().map(|row| tokens[*row].as_slice()).collect();
                    let padded = Batch::Tokens(TokenBatch::new(&rows, self.pad_token_id));
                    let output = self.stack.apply(self.tower.encode(&padded).map_err(EmbeddingError::from)?);
                    for (at, row) in batch.iter().enumerate() {
                        vectors.row_mut(first + row).copy_from_slice(output.row(at));
                    }
                    done += batch.len();
                    go_on(done)?;
                }
            }
            Ok(())
        })?;
        Ok(vectors)
    }
}
