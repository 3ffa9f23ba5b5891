//! Rows of `text`, as data for continued pretraining has them.

use crate::column_names::suggestion;
use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;

/// `text`, of which every token is learned, and EOS after it.
pub(crate) struct RawText;

impl RowFormat for RawText {
    fn columns(&self) -> &'static str {
        "`text`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        // A column such as `label` may be the answer to the text. `output` is one, even if it is null.
        let answered = columns.as_map().contains_key("output") || suggestion(columns.as_map()).is_some();
        columns.get("text").is_some() && !answered
    }

    fn prompt(&self, _: &Columns) -> Result<String> {
        Ok(String::new())
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        let text = json_value::text(columns.require("text")?).at(|| "`text`")?;
        if text.is_empty() {
            return Err(TaskError::Row("`text` is empty, so there is nothing to learn".to_owned()));
        }
        Ok(Answer::Text(vec![text]))
    }

    fn kind(&self, _: &Columns) -> Result<RowKind> {
        Ok(RowKind::Text)
    }

    fn delimiter(&self) -> Option<&'static str> {
        Some("")
    }
}
