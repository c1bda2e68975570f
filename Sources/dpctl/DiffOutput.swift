import ArgumentParser
import LocalAPI

extension Output {
  /// Prints the `differences` of an answer as asked for: nothing where there are none, else the program ends with 1.
  static func differences(_ answer: JSONValue, _ options: GlobalOptions) throws {
    let differences = answer["differences"]?.arrayValue ?? []
    switch options.output {
    case .json: print(answer.serialized(pretty: true))
    case .jsonl: for difference in differences { print(difference.serialized()) }
    case .yaml: print(yaml(answer, indent: 0))
    case .name: for difference in differences { print(difference.text("object")) }
    case .table, .wide:
      if !differences.isEmpty { print(differenceTable(differences).text(withHeaders: !options.noHeaders)) }
    }
    if !differences.isEmpty { throw ExitCode(1) }
  }

  static func differenceTable(_ differences: [JSONValue]) -> Table {
    Table(
      headers: ["BETWEEN", "KIND", "OBJECT"],
      rows: differences.map { [$0.text("between"), $0.text("kind"), $0.text("object")] })
  }
}
