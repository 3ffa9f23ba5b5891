//! A site: a place in a layer where several projections read the same input.

/// One projection of a site, by the path that Hugging Face gives its module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Module path, as in `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Number of features that the projection writes.
    pub width: usize,
}

impl Projection {
    /// The last segment of the module's path, as in `q_proj`.
    pub fn name(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or(&self.module)
    }
}

/// A place in a layer where several projections read the same input, so that one product serves all their A's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Index of the layer, from zero.
    pub layer: usize,
    /// The site's name within its layer, as in `qkv`.
    pub name: &'static str,
    /// Number of features that the projections read.
    pub input: usize,
    /// The projections, in the order in which their outputs stand side by side.
    pub projections: Vec<Projection>,
}

impl Site {
    /// Number of features of all projections together.
    pub fn output(&self) -> usize {
        self.projections.iter().map(|p| p.width).sum()
    }

    /// Each projection with the columns that it fills in the site's output.
    pub fn columns(&self) -> impl Iterator<Item = (&Projection, std::ops::Range<usize>)> {
        self.projections.iter().scan(0, |start, projection| {
            let columns = *start..*start + projection.width;
            *start = columns.end;
            Some((projection, columns))
        })
    }

    /// A key that tells the site from all others of its base, as in `3.qkv`.
    pub fn key(&self) -> String {
        format!("{}.{}", self.layer, self.name)
    }
}
