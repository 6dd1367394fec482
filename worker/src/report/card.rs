//! A student's model card: what it is, how to use it, and the measured table, as Markdown with the front matter that
//! model hubs read.

use super::data::{Kind, ReportData};
use super::table::render_table;

/// The card of the student `name`.
pub fn model_card(data: &ReportData, name: &str) -> String {
    let row = data.rows.iter().find(|row| row.name == name);
    let kind = row.map_or("student", |row| row.kind.name());
    let dim = row.and_then(|row| row.dim).map_or_else(String::new, |dim| format!(" of {dim} dimensions"));
    let bytes = row.map_or(0.0, |row| row.bytes_per_passage);
    let table = render_table(data);
    let usage = match row {
        Some(row) if row.kind == Kind::Quantised => asks_codes(&data.job, name),
        _ => BOTH_SIDES.to_owned(),
    };
    format!(
        r#"---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- dense-retrieval
- distillation
---

# {name}

A {kind} student{dim}, {bytes} bytes a passage, distilled by Retort in the job `{job}` ({title}).

{usage}
## Measured

Beside its teacher and the other rows of the job, on the job's own questions:

```text
{table}```

Spec digest `{digest}`.
"#,
        job = data.job,
        title = data.name,
        digest = data.spec_digest,
    )
}

/// How a model of both sides is used.
const BOTH_SIDES: &str = r#"```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH_TO_THIS_FOLDER")
questions = model.encode_query(["who wrote it?"])
passages = model.encode_document(["A passage, as \"title text\"."])
scores = questions @ passages.T
```

Prompts and longest texts of each side stand in `config_sentence_transformers.json` and `sentence_bert_config.json`;
a passage is its title, a space and its text.
"#;

/// How a folder that asks codes is used.
fn asks_codes(job: &str, name: &str) -> String {
    format!(
        r#"This folder is the questions' side. The passages are codes, in the index that

    retort export {job} {name} --format faiss --out INDEX

writes; they are not embedded with this model.

```python
import faiss
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH_TO_THIS_FOLDER")
index = faiss.read_index("INDEX/passages.faiss")
scores, ids = index.search(model.encode_query(["who wrote it?"]), 10)
```
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_of_codes_says_where_their_passages_are() {
        let data = super::super::sample::sample();
        let card = |name| model_card(&data, name);
        assert!(card("head-64").contains("encode_document") && !card("head-64").contains("faiss"));
        assert!(card("codes-32").contains(&format!("retort export {} codes-32 --format faiss", data.job)));
        assert!(!card("codes-32").contains("encode_document"));
    }
}
