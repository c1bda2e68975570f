import ArgumentParser
import BPFLoader
import NetworkTypes

/// Which elements of a map somebody wants to see: `10.0.0.1`, `10.0.0.0/8`, `tcp`, `80`, `port=80`, `state=open`.
struct MapFilter: ExpressibleByArgument {
  /// nil: any field of the key.
  private var name: String?
  private var text: String
  private var prefix: CIDR?

  init?(argument: String) {
    let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
    (name, text) = parts.count == 2 ? (parts[0], parts[1]) : (nil, argument)
    guard !text.isEmpty, name?.isEmpty != true else { return nil }
    prefix = CIDR(text) ?? IPAddress(text).map { CIDR(host: $0) }
  }

  func passes(key: [Field], value: [Field]) -> Bool {
    if let name { return (key + value).contains { $0.name == name && matches($0.value) } }
    return key.contains { matches($0.value) }
  }

  private func matches(_ value: Field.Value) -> Bool {
    switch value {
    case .address(let address): prefix?.contains(address) ?? false
    // Also the prefix that an address lies in: what a look-up could find.
    case .prefix(let found): prefix.map { $0.contains(found) || found.contains($0) } ?? false
    case .list(let words): words.contains(text)
    case .number, .text, .flag: "\(value)" == text
    }
  }
}
