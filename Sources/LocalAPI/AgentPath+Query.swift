extension AgentPath {
  /// `path?key=value&…`, values percent-encoded; parameters without a value are left out.
  public static func query(_ path: String, _ parameters: [(key: String, value: String?)]) -> String {
    let pairs = parameters.compactMap { key, value in value.map { "\(key)=\(percentEncoded($0))" } }
    return pairs.isEmpty ? path : "\(path)?\(pairs.joined(separator: "&"))"
  }
}
