import LocalAPI

/// Typed members of the configuration: a wrong type is error 7 and names the field.
struct ConfigFields {
  let object: JSONObject
  let prefix: String

  init(_ object: JSONObject, prefix: String = "") {
    self.object = object
    self.prefix = prefix
  }

  private func read<Value>(
    _ key: String, _ kind: String, _ convert: (JSONValue) -> Value?
  ) throws(CNIError) -> Value? {
    guard let json = object[key], !json.isNull else { return nil }
    guard let value = convert(json) else { throw .config(prefix + key, "is no \(kind)") }
    return value
  }

  func string(_ key: String) throws(CNIError) -> String? { try read(key, "string") { $0.stringValue } }
  func bool(_ key: String) throws(CNIError) -> Bool? { try read(key, "boolean") { $0.boolValue } }
  func object(_ key: String) throws(CNIError) -> JSONObject? { try read(key, "object") { $0.objectValue } }
  func array(_ key: String) throws(CNIError) -> [JSONValue]? { try read(key, "array") { $0.arrayValue } }

  func integer(_ key: String, in range: ClosedRange<Int>) throws(CNIError) -> Int? {
    let number = try read(key, "whole number") { $0.intValue.flatMap { Int(exactly: $0) } }
    if let number, !range.contains(number) {
      throw .config(prefix + key, "\(number) is outside \(range.lowerBound)...\(range.upperBound)")
    }
    return number
  }

  func path(_ key: String) throws(CNIError) -> String? {
    let path = try string(key)
    if let path, !path.hasPrefix("/") || path.unicodeScalars.contains("\0") {
      throw .config(prefix + key, "'\(path)' is no absolute path")
    }
    return path
  }
}
