//! A site: a place in a base model where several projections read the same input.

/// One projection of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Module path in the Hugging Face model, as in `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Number of output features.
    pub width: usize,
}

impl Projection {
    /// The last segment of the module path, as in `q_proj`.
    pub fn name(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or(&self.module)
    }
}

/// What a site does in its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SiteRole {
    /// Reads the attention's input: q, k and v.
    AttentionInput,
    /// Writes the attention's output.
    AttentionOutput,
    /// Reads the MLP's input.
    MlpInput,
    /// Writes the MLP's output.
    MlpOutput,
    /// Embeds token ids.
    Embedding,
    /// Makes logits.
    LmHead,
}

/// A place where several projections read the same input, so that one product serves all their A's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Index of the layer, from zero; none for a site outside the layers, such as the head or the embedding.
    pub layer: Option<usize>,
    /// The site's name within its layer, as in `qkv`, or within the base, as in `head`.
    pub name: &'static str,
    /// What it does.
    pub role: SiteRole,
    /// Number of input features.
    pub input: usize,
    /// The projections, in the order of their columns in the site's output.
    pub projections: Vec<Projection>,
}

impl Site {
    /// Number of output features of all projections together.
    pub fn output(&self) -> usize {
        self.projections.iter().map(|p| p.width).sum()
    }

    /// Each projection with its columns in the site's output.
    pub fn columns(&self) -> impl Iterator<Item = (&Projection, std::ops::Range<usize>)> {
        self.projections.iter().scan(0, |start, projection| {
            let columns = *start..*start + projection.width;
            *start = columns.end;
            Some((projection, columns))
        })
    }

    /// A key unique among the sites of a base: `3.qkv`, or `head` outside the layers.
    pub fn key(&self) -> String {
        match self.layer {
            Some(layer) => format!("{layer}.{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_the_layer_where_there_is_one() {
        let site = |layer, name, role| Site { layer, name, role, input: 1, projections: Vec::new() };
        assert_eq!(site(Some(3), "qkv", SiteRole::AttentionInput).key(), "3.qkv");
        assert_eq!(site(None, "head", SiteRole::LmHead).key(), "head");
    }
}
